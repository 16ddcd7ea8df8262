// tessera bench: Impls against each other over the sequence length.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_densities.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/distributed.h"
#include "cli/figures_file.h"
#include "cli/flag_values.h"
#include "cli/measure.h"
#include "cli/plot.h"
#include "cli/problem_flags.h"
#include "cli/terminal.h"
#include "core/fail.h"

namespace tessera::cli {

namespace {

struct BenchFlags {
  const ::CLI::App* app = nullptr;
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
  given.ranks.check(*given.app, given.options.plan.device);
  if (given.ranks.schedule) {
    refuse_given(*given.app, {"--impls", "--densities", "--no-error"}, "absent beside --distributed");
  }
  if (!given.json.empty() && given.json == given.plot) {
    internal::fail_argument("--plot", given.plot, "another file than that of --json");
  }
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
  check_figures_file(flags.json);
  const PlotFormat format = check_plot(flags.plot);
  const auto& impls = flags.options.impls;
  const Peak peak = measure_peak(flags.options.plan, std::find(impls.begin(), impls.end(), "decode") != impls.end());
  const BenchReport report{measure_all(all, flags), impls, flags.passes, peak, flags.options.errors};
  report.print();
  report_figures(flags.json, report.to_json());
  write_plot(flags.plot,
             bench_plot_script(report.points, format, report.title(), {peak.what(), peak.flops_per_second}));
  return report.measured() ? 0 : 1;
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
  flags->app = app;
  flags->problem.add_shape(*app);
  flags->problem.add_options(*app);
  add_plan_flags(*app, flags->options.plan, &flags->problem);
  app->remove_option(app->get_option("--impl"));
  add_integers(*app, "--seqs", "lengths to sweep [512,1024,2048,4096]; --seq-q or --seq-k fixes one side", flags->seqs,
               1)
      ->each([flags](const std::string&) { flags->seqs_given = true; });
  add_value(*app, "--impls", "NAME,NAME,..", "Impls to compare [standard,flash; on cuda the one that a plan takes]",
            fmt::format("names out of {}, each once, separated by commas", fmt::join(impl_names(), ", ")),
            [flags](const std::string& text) {
              flags->options.impls = split(text, ',');
              std::vector<std::string> left = impl_names();
              return std::all_of(flags->options.impls.begin(), flags->options.impls.end(),
                                 [&](const std::string& name) { return std::erase(left, name) > 0; });
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
  add_number(
      *app, "--min-time", "seconds of runs for each Impl and point [0.5]",
      [flags](double x) { flags->options.min_seconds = x; }, 0);
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
