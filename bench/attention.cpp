// Flash attention on the CPU over pass, head dim, length, mask and threads. Counters: FLOP/s of the pairs that attend and of
// the visited tiles, and the share of this core's FMA peak (times the threads), measured around each case.
#include <benchmark/benchmark.h>

#include <algorithm>

#include "workload.h"

namespace {

using tessera::bench::Case;
using tessera::bench::Workload;

void attention(benchmark::State& state, const Case& settings) {
  Workload workload(settings);
  workload.run();
  double peak = tessera::measure_peak_flops(settings.isa);
  double seconds = 0;
  for (auto _ : state) {
    const double run = workload.seconds_of_run(tessera::bench::clock_for(settings.threads));
    state.SetIterationTime(run);
    seconds += run;
  }
  peak = std::max(peak, tessera::measure_peak_flops(settings.isa));
  const auto& facts = workload.plan().facts();
  const auto runs = static_cast<double>(state.iterations());
  const double flops_per_second = facts.flops_of_pairs * runs / seconds;
  state.counters["flops/s"] = flops_per_second;
  state.counters["visited_flops/s"] = facts.flops * runs / seconds;
  state.counters["share_of_peak"] = flops_per_second / (peak * settings.threads);
  state.SetLabel(facts.isa);
}

void register_cases() {
  for (const auto pass : {tessera::Pass::forward, tessera::Pass::backward}) {
    for (const std::int64_t dim : {64, 128}) {
      for (const std::int64_t length : {2048, 8192}) {
        for (const char* mask : {"dense", "causal", "butterfly"}) {
          for (const int threads : {1, 2}) {
            Case settings;
            settings.pass = pass;
            settings.length = length;
            settings.dim = dim;
            settings.mask = mask;
            settings.threads = threads;
            benchmark::RegisterBenchmark(tessera::bench::name_of(settings).c_str(), attention, settings)
                ->Unit(benchmark::kMillisecond)
                ->UseManualTime()
                ->MinTime(0.2)
                ->Repetitions(5)
                ->ReportAggregatesOnly();
          }
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_cases();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
