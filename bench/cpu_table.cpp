// The speed that the CPU kernels promise, beside what they reach here: one row for each promise.
//
// Shares of peak are of the FMA peak of this core, which is measured before and after every single run: on a shared
// machine both move together. Figures are medians over the repeats of the ratio within a repeat. Rows with one thread are
// in CPU time, rows with two in elapsed time.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "workload.h"

namespace {

using tessera::Pass;
using tessera::bench::Case;
using tessera::bench::Workload;

struct Options {
  int repeats = 15;
  std::int64_t longest = 8192;
  std::string isa;
  std::string only;
  std::string json;
  bool check = false;
};

// The ratio that `promise` is about is between `subject` and the peak or, with `base`, between two cases.
struct Row {
  std::string name;
  Case subject;
  std::optional<Case> base;
  double promise = 0;
  std::string unit;
};

struct Result {
  double ratio = 0;   // median
  double lowest = 0;  // quartiles
  double highest = 0;
  double flops_per_second = 0;  // of the subject, median
  double peak = 0;              // median
};

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
}

double median(const std::vector<double>& values) { return quantile(values, 0.5); }

Case case_of(const Options& options, Pass pass, std::int64_t dim, std::int64_t length) {
  Case settings;
  settings.pass = pass;
  settings.dim = dim;
  settings.length = std::min(length, options.longest);
  settings.isa = options.isa;
  return settings;
}

std::vector<Row> rows_of(const Options& options) {
  std::vector<Row> rows;
  const auto share = [&](Pass pass, std::int64_t dim, std::int64_t length, double promise) {
    const Case subject = case_of(options, pass, dim, length);
    rows.push_back({tessera::bench::name_of(subject), subject, std::nullopt, promise, "of peak"});
  };
  share(Pass::forward, 128, 2048, 0.85);
  share(Pass::forward, 64, 2048, 0.80);
  share(Pass::forward, 128, 8192, 0.80);
  share(Pass::forward, 64, 8192, 0.75);
  for (const std::int64_t length : {2048, 8192}) {
    share(Pass::backward, 128, length, 0.75);
    share(Pass::backward, 64, length, 0.70);
  }
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const std::int64_t dim : {64, 128}) {
      const Case dense = case_of(options, pass, dim, 8192);
      for (const char* mask : {"causal", "butterfly", "random-1/8", "random-1/2"}) {
        Case masked = dense;
        masked.mask = mask;
        rows.push_back({tessera::bench::name_of(masked), masked, dense, 0.90, "of the dense rate per visited FLOP"});
      }
    }
  }
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const std::int64_t dim : {64, 128}) {
      Case one = case_of(options, pass, dim, 2048);
      one.heads = 4;
      Case two = one;
      two.threads = 2;
      rows.push_back({tessera::bench::name_of(two), two, one, 1.9, "times one thread"});
    }
  }
  return rows;
}

// Mean of as many runs as take about `seconds`, so that a short case does not fill the caches anew in each of its runs while
// the long one beside it does so once.
double seconds_of_run(Workload& workload, tessera::bench::Clock clock, double seconds) {
  double total = workload.seconds_of_run(clock);
  int runs = 1;
  for (; total < seconds; ++runs) {
    total += workload.seconds_of_run(clock);
  }
  return total / runs;
}

Result measure(const Row& row, const Options& options) {
  Workload subject(row.subject);
  std::optional<Workload> base;
  if (row.base) {
    base.emplace(*row.base);
    base->run();
  }
  subject.run();
  std::vector<double> ratios;
  std::vector<double> rates;
  std::vector<double> peaks;
  const auto clock = tessera::bench::clock_for(row.subject.threads);
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    const double base_seconds = base ? base->seconds_of_run(clock) : 0;
    const double before = tessera::measure_peak_flops(options.isa);
    const double rate = subject.plan().facts().flops_of_pairs / seconds_of_run(subject, clock, base_seconds);
    const double peak = (before + tessera::measure_peak_flops(options.isa)) / 2;
    rates.push_back(rate);
    peaks.push_back(peak);
    if (base) {
      const double visited = subject.plan().facts().flops / subject.plan().facts().flops_of_pairs;
      ratios.push_back(rate * visited * base_seconds / base->plan().facts().flops);
    } else {
      ratios.push_back(rate / peak);
    }
  }
  return {median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75), median(rates), median(peaks)};
}

std::string figure(const Row& row, double ratio) {
  return row.unit == "times one thread" ? fmt::format("{:.2f}x", ratio) : fmt::format("{:.1f} %", 100 * ratio);
}

nlohmann::json json_of(const Row& row, const Result& result) {
  return {{"case", row.name},
          {"base", row.base ? tessera::bench::name_of(*row.base) : "peak"},
          {"ratio", result.ratio},
          {"ratio_quartiles", {result.lowest, result.highest}},
          {"promise", row.promise},
          {"kept", result.ratio >= row.promise},
          {"flops_per_second", result.flops_per_second},
          {"peak_flops_per_second", result.peak}};
}

// Libraries' threads that wait for their first work run for a while, and would count.
void let_threads_settle() {
  const double start = tessera::bench::now_seconds(tessera::bench::Clock::elapsed);
  while (tessera::bench::now_seconds(tessera::bench::Clock::elapsed) - start < 0.3) {
    tessera::measure_peak_flops();
  }
}

int print_table(const Options& options) {
  const std::string isa = options.isa.empty() ? tessera::cpu_info().selected_isa : options.isa;
  nlohmann::json report{{"isa", isa}, {"repeats", options.repeats}, {"rows", nlohmann::json::array()}};
  fmt::print("{}, median of {} repeats, share of the FMA peak measured around each\n\n", isa, options.repeats);
  fmt::print("{:<42} {:>8} {:>8} {:>9} {:>15} {:>9}  {}\n", "case", "GFLOP/s", "peak", "measured", "quartiles",
             "promised", "");
  int missed = 0;
  for (const Row& row : rows_of(options)) {
    if (row.name.find(options.only) == std::string::npos) {
      continue;
    }
    const Result result = measure(row, options);
    const bool kept = result.ratio >= row.promise;
    missed += kept ? 0 : 1;
    fmt::print("{:<42} {:>8.1f} {:>8.1f} {:>9} {:>15} {:>9}  {}{}\n", row.name, result.flops_per_second * 1e-9,
               result.peak * 1e-9, figure(row, result.ratio),
               figure(row, result.lowest) + " .. " + figure(row, result.highest), figure(row, row.promise), row.unit,
               kept ? "" : "  MISSED");
    std::fflush(stdout);
    report["rows"].push_back(json_of(row, result));
  }
  if (!options.json.empty()) {
    std::ofstream(options.json) << report.dump(2) << '\n';
  }
  return options.check && missed > 0 ? 1 : 0;
}

int parse_and_run(int argc, char** argv) {
  Options options;
  CLI::App app("What the CPU kernels promise and what they reach here");
  app.add_option("--repeats", options.repeats, "measurements of each row")->check(CLI::PositiveNumber);
  app.add_option("--longest", options.longest, "cut all lengths to this")->check(CLI::PositiveNumber);
  app.add_option("--isa", options.isa, "instruction set; default: the best");
  app.add_option("--only", options.only, "the rows whose name holds this");
  app.add_option("--json", options.json, "also write the figures to this file");
  app.add_flag("--check", options.check, "exit with 1 when a promise is missed");
  CLI11_PARSE(app, argc, argv);
  let_threads_settle();
  return print_table(options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
