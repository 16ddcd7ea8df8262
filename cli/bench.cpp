// tessera bench: Impls against each other over the sequence length.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_densities.h"
#include "cli/commands.h"
#include "cli/distributed.h"
#include "cli/file_io.h"
#include "cli/flag_values.h"
#include "cli/measure.h"
#include "cli/plot.h"
#include "cli/problem_flags.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "tessera/version.h"

namespace tessera::cli {

namespace {

struct BenchFlags {
  ProblemFlags problem;
  MeasureOptions options;
  RankFlags ranks;
  std::vector<std::int64_t> seqs{512, 1024, 2048, 4096};
  bool seqs_given = false;
  std::vector<Pass> passes{Pass::forward, Pass::backward};
  std::vector<double> densities;
  std::string json;
  std::string plot;
};

double rate(const Measurement& one) { return one.facts.flops_of_pairs / one.median(); }

// What rates are shares of: the FMA peak of one thread with the instruction set that --isa names or, without it, the best
// one; of a GPU the rate of matrix products.
struct Peak {
  Device device;
  std::string name;  // of the instruction set or the GPU
  double flops_per_second = 0;
  double copy_bytes_per_second = 0;  // where what is bound by memory is measured

  Peak(const PlanOptions& plan, bool with_memory) : device(plan.device) {
    if (cuda()) {
      name = internal::cuda_device(device.index).name;
      flops_per_second = internal::measure_matrix_rate(device.index);
      copy_bytes_per_second = with_memory ? internal::measure_copy_rate(device.index) : 0;
    } else {
      name = plan.isa.empty() ? cpu_info().selected_isa : plan.isa;
      flops_per_second = measure_peak_flops(name);
    }
  }
  bool cuda() const { return device.kind == DeviceKind::cuda; }
  double share(const Measurement& one) const {
    return rate(one) / (flops_per_second * (cuda() ? 1 : one.facts.threads));
  }
  std::string what() const { return cuda() ? "matrix rate" : "peak"; }
  std::string text() const {
    const std::string copies =
        copy_bytes_per_second > 0 ? fmt::format("copy rate {:.2f} TB/s, ", copy_bytes_per_second / 1e12) : "";
    return cuda() ? fmt::format("{}matrix rate {:.0f} TFLOP/s ({}, {}), measured in this run", copies,
                                flops_per_second / 1e12, device_text(device), name)
                  : fmt::format("FMA peak {:.1f} GFLOP/s a thread ({}), measured in this run", flops_per_second / 1e9,
                                name);
  }
  nlohmann::ordered_json json() const {
    if (cuda()) {
      nlohmann::ordered_json json{
          {"device", device_text(device)}, {"name", name}, {"matrix_flops_per_second", flops_per_second}};
      if (copy_bytes_per_second > 0) {
        json["copy_bytes_per_second"] = copy_bytes_per_second;
      }
      return json;
    }
    return {{"isa", name}, {"flops_per_second_per_thread", flops_per_second}};
  }
};

// Bytes a second of a forward pass that reads Q and the keys in use and writes O, each once.
double memory_rate(const Problem& problem, const Measurement& one) {
  double elements = static_cast<double>(problem.total_q() * problem.heads_q);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    elements += static_cast<double>(problem.sequence(b).keys * problem.heads_kv);
  }
  return elements * static_cast<double>((problem.dim_qk + problem.dim_v) * dtype_bytes(problem.dtype)) / one.median();
}

std::vector<Problem> problems(const BenchFlags& flags) {
  if (flags.problem.lengths_fixed()) {
    if (flags.seqs_given) {
      internal::fail_argument("--seqs", "given beside flags that fix the lengths", "one of them");
    }
    return {flags.problem.problem()};
  }
  std::vector<Problem> all;
  std::transform(flags.seqs.begin(), flags.seqs.end(), std::back_inserter(all),
                 [&](std::int64_t length) { return flags.problem.problem_of_length(length); });
  return all;
}

std::string lengths_text(const Problem& problem) {
  return problem.seq_q == problem.seq_k ? std::to_string(problem.seq_k)
                                        : fmt::format("{}x{}", problem.seq_q, problem.seq_k);
}

std::string error_text(const Measurement& one) {
  return one.error ? fmt::format("{:.1e}{}", one.error->error, one.error->whole ? "" : "*") : "-";
}

std::string speed_up(const MeasuredPoint& point, const std::vector<std::string>& impls) {
  const Measurement* first = point.of(impls.front());
  const Measurement* last = point.of(impls.back());
  return first != nullptr && last != nullptr ? bold(fmt::format("{:.2f}x", first->median() / last->median())) : "-";
}

// A group of columns, one for each Impl.
struct Column {
  std::string title;
  std::function<std::string(const Problem&, const Measurement&)> text;
};

std::vector<Column> columns(const Peak& peak, Pass pass) {
  std::vector<Column> all;
  const auto add = [&all](const char* title, const auto& text) {
    all.push_back({title, [text](const Problem&, const Measurement& one) { return text(one); }});
  };
  add("time", [](const Measurement& one) { return time_text(one.median()); });
  if (peak.cuda()) {
    add("TFLOP/s", [](const Measurement& one) { return fmt::format("{:.1f}", rate(one) / 1e12); });
  }
  if (peak.copy_bytes_per_second > 0 && pass == Pass::forward) {
    all.push_back({"GB/s", [](const Problem& problem, const Measurement& one) {
                     return fmt::format("{:.0f}", memory_rate(problem, one) / 1e9);
                   }});
    all.push_back({"share of copy rate", [&peak](const Problem& problem, const Measurement& one) {
                     return fmt::format("{:.0f} %", 100 * memory_rate(problem, one) / peak.copy_bytes_per_second);
                   }});
  }
  add("extra memory",
      [](const Measurement& one) { return bytes_text(static_cast<double>(one.facts.workspace_bytes)); });
  add(peak.cuda() ? "share of matrix rate" : "share of peak",
      [&peak](const Measurement& one) { return fmt::format("{:.0f} %", 100 * peak.share(one)); });
  add("error", error_text);
  return all;
}

// The names of the Impls under those of the columns; of one Impl the columns alone.
Table header_of(const std::vector<Column>& columns, const std::vector<std::string>& impls) {
  const bool compared = impls.size() > 1;
  std::vector<std::string> header{"seq"};
  std::vector<std::size_t> firsts;
  for (const Column& column : columns) {
    firsts.push_back(header.size());
    if (!compared) {
      header.push_back(column.title);
      continue;
    }
    header.insert(header.end(), impls.begin(), impls.end());
    if (&column == &columns.front()) {
      header.emplace_back("speed-up");
    }
  }
  firsts.push_back(header.size());
  Table table(header);
  for (std::size_t n = 0; compared && n < columns.size(); ++n) {
    table.group(columns[n].title, firsts[n], firsts[n + 1] - 1);
  }
  return table;
}

// Each column of each Impl; behind the time the speed-up of the last over the first.
std::string table_of(const std::vector<MeasuredPoint>& points, Pass pass, const BenchFlags& flags, const Peak& peak) {
  const auto& impls = flags.options.impls;
  const bool compared = impls.size() > 1;
  const std::vector<Column> all = columns(peak, pass);
  Table table = header_of(all, impls);
  for (const MeasuredPoint& point : points) {
    if (point.pass != pass) {
      continue;
    }
    std::vector<std::string> row{lengths_text(point.problem)};
    for (const Column& column : all) {
      for (const Measurement& one : point.measurements) {
        row.push_back(one.measured() ? column.text(point.problem, one) : "-");
      }
      if (&column == &all.front() && compared) {
        row.push_back(speed_up(point, impls));
      }
    }
    table.add(std::move(row));
  }
  return table.text();
}

void print_notes(const std::vector<MeasuredPoint>& points, const BenchFlags& flags, const Peak& peak) {
  const auto each = [&](const auto& visit) {
    for (const MeasuredPoint& point : points) {
      for (const Measurement& one : point.measurements) {
        visit(point, one);
      }
    }
  };
  fmt::print(
      "time: median of {} runs or more, Impls in turn{}; extra memory: workspace beside inputs and outputs;\n"
      "share of {}: FLOPs of the pairs that attend, per second, over {}\n",
      kFewestRuns, peak.cuda() ? ", by events on the device" : "", peak.what(),
      peak.cuda() ? "those of products of matrices that lie in shared memory" : "the FMA peak of as many threads");
  bool sampled = false;
  each([&](const MeasuredPoint&, const Measurement& one) { sampled = sampled || (one.error && !one.error->whole); });
  if (flags.options.errors) {
    fmt::print(
        "error: the largest ||x - ref|| / ||ref|| of the outputs, against the oracle in double precision, in one "
        "sequence\nand the heads of one key head{}\n",
        sampled ? "; *: of 64 rows spread over it, O and LSE or dQ alone" : "");
  }
  each([](const MeasuredPoint& point, const Measurement& one) {
    if (!one.measured()) {
      fmt::print("{} skipped at {}, {}: {}\n", one.impl, lengths_text(point.problem), pass_name(point.pass),
                 one.skipped);
    }
  });
}

nlohmann::ordered_json json_of(const MeasuredPoint& point, const Peak& peak) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const Measurement& one : point.measurements) {
    nlohmann::ordered_json entry{{"impl", one.impl}};
    if (!one.measured()) {
      entry["skipped"] = one.skipped;
      results.push_back(entry);
      continue;
    }
    if (!peak.cuda()) {
      entry["isa"] = one.facts.isa;
      entry["threads"] = one.facts.threads;
    }
    entry["median_seconds"] = one.median();
    entry["fastest_seconds"] = one.seconds.front();
    entry["runs"] = one.seconds.size();
    entry["workspace_bytes"] = one.facts.workspace_bytes;
    entry["flops_of_pairs"] = one.facts.flops_of_pairs;
    entry["flops_in_tiles"] = one.facts.flops;
    entry["flops_per_second"] = rate(one);
    if (peak.copy_bytes_per_second > 0 && point.pass == Pass::forward) {
      entry["bytes_per_second"] = memory_rate(point.problem, one);
    }
    entry[peak.cuda() ? "share_of_matrix_rate" : "share_of_peak"] = peak.share(one);
    if (one.error) {
      entry["error"] = {{"value", one.error->error},
                        {"output", one.error->output},
                        {"rows", one.error->rows},
                        {"all_rows", one.error->whole}};
    }
    results.push_back(entry);
  }
  return {{"pass", pass_name(point.pass)},
          {"seq_q", point.problem.seq_q},
          {"seq_k", point.problem.seq_k},
          {"problem", point.problem.describe()},
          {"results", results}};
}

void write_json(const std::string& path, const std::vector<MeasuredPoint>& points, const Peak& peak) {
  nlohmann::ordered_json document{
      {"tessera", kVersion}, {"peak", peak.json()}, {"points", nlohmann::ordered_json::array()}};
  for (const MeasuredPoint& point : points) {
    document["points"].push_back(json_of(point, peak));
  }
  write_file_atomically(path, document.dump(2) + "\n");
}

// What all points share, without the lengths.
std::string headline(const Problem& problem, const PlanFacts* facts, const Peak& peak) {
  const std::string mask = problem.mask.describe();
  return fmt::format("{}, {} {}, {} heads{}, dim {}{}{}", dtype_name(problem.dtype),
                     problem.ragged() ? "ragged" : "batch", problem.batch, problem.heads_q,
                     problem.heads_kv == problem.heads_q ? "" : fmt::format(" over {} key heads", problem.heads_kv),
                     problem.dim_qk == problem.dim_v ? std::to_string(problem.dim_qk)
                                                     : fmt::format("{} and {}", problem.dim_qk, problem.dim_v),
                     mask == "none" ? "" : ", " + mask,
                     peak.cuda()        ? ", " + peak.name
                     : facts == nullptr ? ""
                                        : fmt::format(", {} thread{}", facts->threads, facts->threads == 1 ? "" : "s"));
}

const PlanFacts* any_facts(const std::vector<MeasuredPoint>& points) {
  for (const MeasuredPoint& point : points) {
    for (const Measurement& one : point.measurements) {
      if (one.measured()) {
        return &one.facts;
      }
    }
  }
  return nullptr;
}

std::vector<MeasuredPoint> measure_all(const std::vector<Problem>& all, const BenchFlags& flags) {
  std::vector<MeasuredPoint> points;
  Progress progress(static_cast<std::int64_t>(all.size() * flags.passes.size()));
  for (const Pass pass : flags.passes) {
    for (const Problem& problem : all) {
      progress.step(fmt::format("{}, {}", pass_name(pass), lengths_text(problem)),
                    static_cast<std::int64_t>(points.size()));
      points.push_back(measure(problem, pass, flags.options));
    }
  }
  return points;
}

// The fastest one comes last: on a GPU the one that a plan takes.
std::vector<std::string> default_impls(const PlanOptions& options, const Problem& problem) {
  if (options.device.kind == DeviceKind::cpu) {
    return {"standard", "flash"};
  }
  return {Plan::make(problem, Pass::forward, options).facts().impl};
}

int sweep_densities(const BenchFlags& flags) {
  if (flags.seqs_given) {
    internal::fail_argument("--seqs", "given beside --densities", "--seq, one length");
  }
  const Problem problem = flags.problem.problem();
  if (problem.mask.has_blocks()) {
    internal::fail_argument("--densities", "given beside a block mask", "problems without one");
  }
  DensityBench sweep{
      problem, flags.problem.block_grid(problem), flags.densities, flags.passes, flags.options, flags.json, flags.plot};
  const auto& impls = flags.options.impls;
  sweep.options.impls = {impls.empty() ? default_impls(flags.options.plan, problem).back() : impls.front()};
  return bench_densities(sweep);
}

int bench(const BenchFlags& given) {
  if (!given.densities.empty()) {
    return sweep_densities(given);
  }
  BenchFlags flags = given;
  const std::vector<Problem> all = problems(flags);
  if (flags.options.impls.empty()) {
    flags.options.impls = default_impls(flags.options.plan, all.front());
  }
  if (flags.ranks.schedule) {
    return bench_over_ranks(
        {all, flags.passes, flags.options.plan, flags.options.min_seconds, flags.options.seed, flags.json, flags.plot},
        flags.ranks);
  }
  if (!flags.json.empty()) {
    require_writable(flags.json);
  }
  const PlotFormat format = check_plot(flags.plot);
  const auto& names = flags.options.impls;
  const Peak peak(flags.options.plan, std::find(names.begin(), names.end(), "decode") != names.end());
  const std::vector<MeasuredPoint> points = measure_all(all, flags);
  const PlanFacts* facts = any_facts(points);
  const auto& impls = flags.options.impls;
  const std::string title = headline(all.front(), facts, peak) + (impls.size() == 1 ? ", " + impls.front() : "");
  fmt::print("{}\n", bold(title));
  fmt::print("{}\n", peak.text());
  for (const Pass pass : flags.passes) {
    fmt::print("\n{}\n{}", bold(std::string(pass_name(pass))), table_of(points, pass, flags, peak));
  }
  fmt::print("\n");
  print_notes(points, flags, peak);
  if (!flags.json.empty()) {
    write_json(flags.json, points, peak);
    fmt::print("figures written to {}\n", flags.json);
  }
  write_plot(flags.plot,
             bench_plot_script(points, format, title, {peak.cuda() ? peak.what() : "FMA peak", peak.flops_per_second}));
  return facts == nullptr ? 1 : 0;
}

std::vector<std::string> impl_names() {
  std::vector<std::string> names;
  for (const ImplInfo& info : implementations()) {
    names.push_back(info.name);
  }
  return names;
}

}  // namespace

Command add_bench(::CLI::App& root) {
  ::CLI::App* app = root.add_subcommand("bench", "Time Impls against each other over the sequence length");
  auto flags = std::make_shared<BenchFlags>();
  flags->problem.add_shape(*app);
  flags->problem.add_options(*app);
  add_plan_flags(*app, flags->options.plan, &flags->problem);
  app->remove_option(app->get_option("--impl"));
  add_integers(*app, "--seqs", "lengths to sweep [512,1024,2048,4096]; --seq-q or --seq-k fixes one side", flags->seqs,
               1)
      ->each([flags](const std::string&) { flags->seqs_given = true; });
  add_value(*app, "--impls", "NAME,NAME,..", "Impls to compare [standard,flash; on cuda the one that a plan takes]",
            fmt::format("names out of {}, separated by commas", fmt::join(impl_names(), ", ")),
            [flags](const std::string& text) {
              flags->options.impls = split(text, ',');
              const auto known = impl_names();
              return std::all_of(
                  flags->options.impls.begin(), flags->options.impls.end(),
                  [&](const std::string& name) { return std::find(known.begin(), known.end(), name) != known.end(); });
            });
  add_value(*app, "--densities", "D,D,..",
            "sweep the density of a random block mask instead of the length; the first of --impls is timed [flash; on "
            "cuda the one that a plan takes]",
            "numbers from 0 to 1, separated by commas", [flags](const std::string& text) {
              flags->densities.clear();
              for (const std::string& part : split(text, ',')) {
                flags->densities.push_back(to_number(part).value_or(-1));
              }
              return std::all_of(flags->densities.begin(), flags->densities.end(),
                                 [](double density) { return density >= 0 && density <= 1; });
            });
  add_word(*app, "--pass", "passes to time [both]", {"forward", "backward", "both"}, [flags](const std::string& word) {
    flags->passes = word == "forward"    ? std::vector{Pass::forward}
                    : word == "backward" ? std::vector{Pass::backward}
                                         : std::vector{Pass::forward, Pass::backward};
  });
  add_number(*app, "--min-time", "seconds of runs for each Impl and point [0.5]",
             [flags](double x) { flags->options.min_seconds = x; });
  add_seed(*app, "--seed", "seed of the random numbers [0]", flags->options.seed);
  app->add_flag_callback("--no-error", [flags] { flags->options.errors = false; }, "leave the oracle out");
  app->add_option("--json", flags->json, "write all figures to this file")->type_name("FILE");
  app->add_option("--plot", flags->plot,
                  "draw the figures to this .png or .svg (needs gnuplot), or write gnuplot's script to this .gp")
      ->type_name("FILE");
  flags->ranks.add(*app);
  app->footer(
      "Examples:\n"
      "  tessera bench --dim 128 --mask causal --threads 1 --seqs 1024,2048,4096 --plot bench.png\n"
      "  tessera bench --device cuda --dim 128 --mask causal --batch 4 --heads 16 --seqs 2K,4K,8K,16K\n"
      "  tessera bench --device cuda --dim 128 --heads 32 --kv-heads 8 --seq-q 1 --seqs 4K,64K --pass forward\n"
      "  tessera bench --seq 8192 --densities 0.0625,0.125,0.25,0.5,0.75,1 --plot densities.png\n"
      "  mpirun -n 4 tessera bench --distributed burst --mask causal --threads 1 --seq 8192 --plot timeline.png");
  return {app, [flags] { return bench(*flags); }};
}

}  // namespace tessera::cli
