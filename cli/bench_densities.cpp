#include "cli/bench_densities.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/figures_file.h"
#include "cli/plan_text.h"
#include "cli/plot.h"
#include "cli/terminal.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

constexpr std::uint64_t kPatternSeed = 1;

struct Point {
  double density = 0;  // that the mask really has
  Measurement measured;
};

struct PassResult {
  Pass pass = Pass::forward;
  Measurement dense;
  std::vector<Point> points;
  Line line;
};

Measurement measure_one(const Problem& problem, Pass pass, const MeasureOptions& options, ProblemTensors& tensors) {
  Measurement one = measure(problem, pass, options, &tensors).measurements.front();
  if (!one.measured()) {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {}", one.impl, one.skipped));
  }
  return one;
}

PassResult measure_pass(const DensityBench& bench, Pass pass, ProblemTensors& tensors, Progress& progress,
                        std::int64_t& done) {
  PassResult result;
  result.pass = pass;
  progress.step(fmt::format("{}, dense", pass_name(pass)), done++);
  result.dense = measure_one(bench.problem, pass, bench.options, tensors);
  std::vector<double> x;
  std::vector<double> y;
  for (const double density : bench.densities) {
    progress.step(fmt::format("{}, density {}", pass_name(pass), density), done++);
    const BlockMask blocks = block_patterns::random(bench.grid, density, kPatternSeed);
    Problem problem = bench.problem;
    problem.mask = (problem.mask & Mask::blocks(blocks)).with_alignment(problem.mask.alignment());
    result.points.push_back({blocks.density(), measure_one(problem, pass, bench.options, tensors)});
    x.push_back(blocks.density());
    y.push_back(result.points.back().measured.median());
  }
  result.line = fit_line(x, y);
  return result;
}

double visited_rate(const Measurement& one) { return one.facts.flops / one.median(); }

std::string table_of(const PassResult& result, const Device& device) {
  const bool tera = device.kind == DeviceKind::cuda;
  Table table(
      {"density", "time", "of dense time", tera ? "visited TFLOP/s" : "visited GFLOP/s", "of dense rate", "error"});
  const auto add = [&](const std::string& name, const Measurement& one) {
    const bool visits = one.facts.flops > 0;
    table.add({name, time_text(one.median()), fmt::format("{:.1f} %", 100 * one.median() / result.dense.median()),
               visits ? fmt::format("{:.1f}", visited_rate(one) / (tera ? 1e12 : 1e9)) : "-",
               visits ? fmt::format("{:.0f} %", 100 * visited_rate(one) / visited_rate(result.dense)) : "-",
               error_text(one.error)});
  };
  for (const Point& point : result.points) {
    add(fmt::format("{:.4g}", point.density), point.measured);
  }
  add("dense", result.dense);
  return table.text();
}

nlohmann::ordered_json json_of(const PassResult& result) {
  const auto figures = [&](const Measurement& one) {
    return nlohmann::ordered_json{{"median_seconds", one.median()},
                                  {"runs", one.seconds.size()},
                                  {"visited_tiles", one.facts.tiles.full + one.facts.tiles.partial},
                                  {"flops_in_tiles", one.facts.flops},
                                  {"workspace_bytes", one.facts.workspace_bytes}};
  };
  nlohmann::ordered_json entry{{"pass", pass_name(result.pass)},
                               {"dense", figures(result.dense)},
                               {"points", nlohmann::ordered_json::array()},
                               {"fixed_seconds", result.line.intercept},
                               {"seconds_per_density", result.line.slope},
                               {"r_squared", result.line.r_squared}};
  for (const Point& point : result.points) {
    nlohmann::ordered_json one = figures(point.measured);
    one["density"] = point.density;
    entry["points"].push_back(one);
  }
  return entry;
}

// Left: time over density with the fitted lines, dense time dashed, the key above all of them. Right: the mask of the
// density nearest a quarter.
std::string plot_script(const DensityBench& bench, const std::vector<PassResult>& results, PlotFormat format,
                        const std::string& title) {
  std::string script = plot_terminal(format, 1200, 560);
  std::string curves;
  for (std::size_t n = 0; n < results.size(); ++n) {
    const PassResult& result = results[n];
    script += fmt::format("$d{} << EOD\n", n);
    for (const Point& point : result.points) {
      script += fmt::format("{:.9g} {:.9g}\n", point.density, 1e3 * point.measured.median());
    }
    const char* colour = result.pass == Pass::forward ? "#0b6e99" : "#d1495b";
    script += "EOD\n";
    curves += fmt::format(
        "{}$d{} using 1:2 with points pt 7 ps 1.2 lc rgb '{}' title '{}', {:.9g} + {:.9g} * x lw 2 lc rgb '{}' "
        "notitle, "
        "{:.9g} lw 2 dt (8,6) lc rgb '{}' title '{}, dense'",
        n == 0 ? "plot " : ", ", n, colour, pass_name(result.pass), 1e3 * result.line.intercept,
        1e3 * result.line.slope, colour, 1e3 * result.dense.median(), colour, pass_name(result.pass));
  }
  const auto nearest = std::min_element(bench.densities.begin(), bench.densities.end(),
                                        [](double a, double b) { return std::abs(a - 0.25) < std::abs(b - 0.25); });
  const BlockMask shown = block_patterns::random(bench.grid, *nearest, kPatternSeed);
  script += "$mask << EOD\n";
  for (std::int64_t row = 0; row < bench.grid.rows(); ++row) {
    for (std::int64_t column = 0; column < bench.grid.columns(); ++column) {
      script += shown.attends(0, row * bench.grid.block_q, column * bench.grid.block_k) ? "1 " : "0 ";
    }
    script += "\n";
  }
  script += "EOD\n";
  script += fmt::format(
      "set multiplot layout 1,2 title {} noenhanced font ',15' margins 0.07,0.98,0.12,0.85 spacing 0.09\n"
      "set border 3 lc rgb '#666666'\nset grid ytics lc rgb '#c8c8c8'\nset xtics nomirror\nset ytics nomirror\n"
      "set key top left Left reverse\nset offsets 0, 0, graph 0.35, 0\nset xrange [0:1]\nset yrange [0:*]\nset xlabel "
      "'share of blocks kept'\n"
      "set title 'Time, ms'\n{}\n"
      "set title 'Kept blocks at density {:.4g}'\nunset key\nunset grid\nunset xlabel\nunset colorbox\nset size ratio "
      "-1\n"
      "set border 15\nset xrange [-0.5:{}]\nset yrange [{}:-0.5]\nset palette defined (0 '#ffffff', 1 '#0b6e99')\n"
      "set cbrange [0:1]\nset xtics out\nset ytics out\nplot $mask matrix with image\nunset multiplot\n",
      quoted_text(title), curves, *nearest, static_cast<double>(bench.grid.columns()) - 0.5,
      static_cast<double>(bench.grid.rows()) - 0.5);
  return script;
}

std::string headline(const DensityBench& bench, const PlanFacts& facts) {
  const Problem& problem = bench.problem;
  const std::string mask = problem.mask.describe();
  return fmt::format("{}, {} queries x {} keys in blocks of {} x {}, {} heads, dim {}{}, {}", dtype_name(problem.dtype),
                     problem.seq_q, problem.seq_k, bench.grid.block_q, bench.grid.block_k, problem.heads_q,
                     problem.dim_qk, mask == "none" ? "" : ", " + mask, plan_text(facts, bench.options.plan.device));
}

}  // namespace

Line fit_line(const std::vector<double>& x, const std::vector<double>& y) {
  const auto mean = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
  };
  const double mean_x = mean(x);
  const double mean_y = mean(y);
  double xx = 0;
  double xy = 0;
  double yy = 0;
  for (std::size_t n = 0; n < x.size(); ++n) {
    xx += (x[n] - mean_x) * (x[n] - mean_x);
    xy += (x[n] - mean_x) * (y[n] - mean_y);
    yy += (y[n] - mean_y) * (y[n] - mean_y);
  }
  Line line;
  line.slope = xx == 0 ? 0.0 : xy / xx;
  line.intercept = mean_y - line.slope * mean_x;
  line.r_squared = xx == 0 || yy == 0 ? 1.0 : xy * xy / (xx * yy);
  return line;
}

int bench_densities(const DensityBench& bench) {
  check_figures_file(bench.json);
  const PlotFormat format = check_plot(bench.plot);
  std::vector<PassResult> results;
  {
    Progress progress(static_cast<std::int64_t>(bench.passes.size() * (bench.densities.size() + 1)));
    std::int64_t done = 0;
    TensorOptions random;
    random.seed = bench.options.seed;
    ProblemTensors tensors(bench.problem, random);
    for (const Pass pass : bench.passes) {
      results.push_back(measure_pass(bench, pass, tensors, progress, done));
    }
  }
  const std::string title = headline(bench, results.front().dense.facts);
  fmt::print("{}\n", bold(title));
  for (const PassResult& result : results) {
    fmt::print("\n{}\n{}", bold(std::string(pass_name(result.pass))), table_of(result, bench.options.plan.device));
    fmt::print("time = {} + {} x density, R^2 = {:.5f}\n", time_text(result.line.intercept),
               time_text(result.line.slope), result.line.r_squared);
  }
  nlohmann::ordered_json figures{{"problem", title}, {"passes", nlohmann::ordered_json::array()}};
  for (const PassResult& result : results) {
    figures["passes"].push_back(json_of(result));
  }
  report_figures(bench.json, figures);
  write_plot(bench.plot, plot_script(bench, results, format, title));
  return 0;
}

}  // namespace tessera::cli
