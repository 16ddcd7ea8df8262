#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/bench_tensors.h"
#include "cli/distributed.h"
#include "cli/figures_file.h"
#include "cli/measure.h"
#include "cli/plot.h"
#include "cli/rank_rates.h"
#include "cli/run_plan.h"
#include "cli/terminal.h"
#include "tessera/attention.h"

namespace tessera::cli {

namespace {

// One rank's fastest-to-slowest middle run.
struct RankTime {
  double seconds = 0;
  double compute_seconds = 0;
  double wait_seconds = 0;
  double transfer_seconds = 0;
  double share_hidden = 0;
  std::int64_t bytes_sent = 0;
  double flops = 0;
};

struct RankPoint {
  Problem problem;
  Pass pass = Pass::forward;
  DistributedFacts facts;  // of rank 0
  std::vector<RankTime> ranks;
  int runs = 0;
  // Of one rank that has the whole problem: the slowest and, of GPUs, which are timed at the same time, the fastest.
  double alone_seconds = 0;
  double alone_fastest_seconds = 0;
  std::optional<Prediction> prediction;
  std::int64_t tensor_bytes = 0;  // of rank 0, for this pass
  std::vector<std::vector<TimelineEvent>> timelines;

  double seconds() const {
    return std::max_element(ranks.begin(), ranks.end(),
                            [](const RankTime& a, const RankTime& b) { return a.seconds < b.seconds; })
        ->seconds;
  }
  double efficiency() const { return alone_seconds / (seconds() * static_cast<double>(ranks.size())); }
};

// This rank's tokens alone, of random numbers; bias, slopes and sinks are whole.
BenchTensors local_tensors(const Problem& whole, const RankFlags& flags, const Communicator& communicator,
                           std::uint64_t seed) {
  Problem local = whole;
  local.seq_q = SequenceLayout(flags.layout, whole.seq_q, communicator.size()).tokens(communicator.rank());
  local.seq_k = SequenceLayout(flags.layout, whole.seq_k, communicator.size()).tokens(communicator.rank());
  local.mask = Mask::none();
  local.key_lengths.clear();
  return {local, communicator.device(), seed + static_cast<std::uint64_t>(communicator.rank())};
}

// The median run of this rank; all ranks agree on the number of runs.
RunReport timed_runs(DistributedPlan& plan, Pass pass, const BenchTensors& tensors, Communicator& communicator,
                     double min_seconds, int& runs) {
  const auto run = [&] {
    return pass == Pass::forward ? plan.run(tensors.forward(), tensors.stream())
                                 : plan.run(tensors.backward(), tensors.stream());
  };
  constexpr double kLong = 1;  // second: then the first run has warmed up enough, and one more is timed
  const auto seconds_of_rank_0 = [&] { return gather(communicator, run().seconds).front(); };
  double warm = seconds_of_rank_0();  // loads kernels
  if (warm < kLong) {
    warm = seconds_of_rank_0();
  }
  const int fewest = warm < kLong ? kFewestRuns : 1;
  runs = std::clamp(static_cast<int>(min_seconds / std::max(warm, 1e-9)), fewest, 1000);
  std::vector<RunReport> reports;
  for (int n = 0; n < runs; ++n) {
    gather(communicator, n);  // start together
    reports.push_back(run());
  }
  const auto middle = reports.begin() + runs / 2;
  std::nth_element(reports.begin(), middle, reports.end(),
                   [](const RunReport& a, const RunReport& b) { return a.seconds < b.seconds; });
  return std::move(*middle);
}

std::vector<std::vector<TimelineEvent>> gather_timelines(Communicator& communicator,
                                                         const std::vector<TimelineEvent>& mine) {
  const std::vector<std::size_t> counts = gather(communicator, mine.size());
  std::vector<TimelineEvent> padded = mine;
  padded.resize(*std::max_element(counts.begin(), counts.end()));
  std::vector<std::vector<TimelineEvent>> all;
  for (const auto& bytes : communicator.gather(std::as_bytes(std::span(padded)))) {
    auto& events = all.emplace_back(counts[all.size()]);
    if (!events.empty()) {
      std::memcpy(events.data(), bytes.data(), events.size() * sizeof(TimelineEvent));
    }
  }
  return all;
}

std::int64_t bytes_of(const ConstTensorView& view) { return view.elements() * dtype_bytes(view.dtype); }

// What a rank's caller holds for one pass.
std::int64_t tensor_bytes(const BenchTensors& tensors, Pass pass) {
  const BackwardTensors all = tensors.backward();
  std::int64_t bytes = 0;
  for (const ConstTensorView& view : {all.q, all.k, all.v, all.out, all.lse}) {
    bytes += bytes_of(view);
  }
  if (pass == Pass::backward) {
    bytes += bytes_of(all.dout) + bytes_of(all.dq) + bytes_of(all.dk) + bytes_of(all.dv);
  }
  return bytes;
}

RankPoint measure_point(const RankBench& bench, const RankFlags& flags, const Problem& problem, Pass pass,
                        Communicator& communicator) {
  RankPoint point;
  point.problem = problem;
  point.pass = pass;
  DistributedOptions options = flags.options(bench.plan, communicator);
  options.record_timeline = !bench.plot.empty();
  const BenchTensors tensors = local_tensors(problem, flags, communicator, bench.seed);
  if (pass == Pass::backward) {  // O and LSE for it to read
    DistributedPlan::make(problem, Pass::forward, communicator, options).run(tensors.forward(), tensors.stream());
  }
  DistributedPlan plan = DistributedPlan::make(problem, pass, communicator, options);
  const RunReport report = timed_runs(plan, pass, tensors, communicator, bench.min_seconds, point.runs);
  point.facts = plan.facts();
  point.tensor_bytes = tensor_bytes(tensors, pass);
  point.ranks = gather(communicator,
                       RankTime{report.seconds, report.compute_seconds, report.wait_seconds, report.transfer_seconds,
                                report.share_hidden(), report.traffic.bytes_sent, plan.facts().flops_of_pairs});
  point.timelines = gather_timelines(communicator, report.timeline);
  return point;
}

// On every GPU at once, as the ring has them: one that is slower than the others, or all that draw power, is not the ring's.
void measure_alone(RankPoint& point, const RankBench& bench, Communicator& communicator) {
  PlanOptions plan = bench.plan;
  plan.device = communicator.device();
  gather(communicator, 0);  // start together
  const std::vector<double> all =
      gather(communicator, seconds_alone(point.problem, point.pass, plan, bench.min_seconds, bench.seed));
  const auto [fastest, slowest] = std::minmax_element(all.begin(), all.end());
  point.alone_seconds = *slowest;
  point.alone_fastest_seconds = *fastest;
}

void print_points(const std::vector<RankPoint>& points) {
  Table table({"pass", "seq", "rank", "time", "compute", "waited", "hidden", "sent", "one rank alone", "efficiency",
               "predicted"});
  for (const RankPoint& point : points) {
    for (std::size_t rank = 0; rank < point.ranks.size(); ++rank) {
      const RankTime& one = point.ranks[rank];
      const bool first = rank == 0;
      const bool alone = point.alone_seconds > 0;
      table.add({first ? std::string(pass_name(point.pass)) : "", first ? std::to_string(point.problem.seq_k) : "",
                 std::to_string(rank), time_text(one.seconds), time_text(one.compute_seconds),
                 time_text(one.wait_seconds), fmt::format("{:.0f} %", 100 * one.share_hidden),
                 bytes_text(static_cast<double>(one.bytes_sent)), first && alone ? time_text(point.alone_seconds) : "",
                 first && alone ? fmt::format("{:.1f} %", 100 * point.efficiency()) : "",
                 first && point.prediction ? time_text(point.prediction->seconds) : ""});
    }
  }
  fmt::print("\n{}\n", table.text());
  fmt::print(
      "time: the median run of each rank; hidden: the share of the time of transfers that was not waited for;\n"
      "efficiency: the time of one rank that has the whole problem (of GPUs, all at once, the slowest), over the "
      "ranks' "
      "number and the slowest one's time;\npredicted: by the cost model, from kernels, links and sums that were timed "
      "alone\n");
}

nlohmann::ordered_json json_of(const RankPoint& point) {
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const RankTime& one : point.ranks) {
    ranks.push_back({{"seconds", one.seconds},
                     {"compute_seconds", one.compute_seconds},
                     {"wait_seconds", one.wait_seconds},
                     {"transfer_seconds", one.transfer_seconds},
                     {"share_hidden", one.share_hidden},
                     {"bytes_sent", one.bytes_sent},
                     {"flops_of_pairs", one.flops}});
  }
  return {{"pass", pass_name(point.pass)},
          {"seq_q", point.problem.seq_q},
          {"seq_k", point.problem.seq_k},
          {"problem", point.problem.describe()},
          {"schedule", schedule_name(point.facts.schedule)},
          {"queries_travel", point.facts.queries_travel},
          {"memory_bytes", point.facts.memory_bytes},
          {"tensor_bytes", point.tensor_bytes},
          {"runs", point.runs},
          {"seconds", point.seconds()},
          {"one_rank_seconds", point.alone_seconds},
          {"one_rank_fastest_seconds", point.alone_fastest_seconds},
          {"predicted_seconds", point.prediction ? point.prediction->seconds : 0},
          {"efficiency", point.efficiency()},
          {"ranks", ranks}};
}

nlohmann::ordered_json json_of(const RankFlags& flags, const Communicator& communicator, const RankRates& rates,
                               const std::vector<RankPoint>& points) {
  nlohmann::ordered_json document{{"transport", communicator.name()},
                                  {"ranks", communicator.size()},
                                  {"ranks_per_node", points.front().facts.ranks_per_node},
                                  {"layout", layout_name(flags.layout)},
                                  {"rates", rates.to_json()},
                                  {"points", nlohmann::ordered_json::array()}};
  for (const RankPoint& point : points) {
    document["points"].push_back(json_of(point));
  }
  return document;
}

}  // namespace

int bench_over_ranks(const RankBench& bench, const RankFlags& flags) {
  check_figures_file(bench.json);
  const PlotFormat format = check_plot(bench.plot);
  return run_ranks(flags, bench.plan.device, [&](Communicator& communicator) {
    RankRates rates = flags.baseline ? measure_rates(communicator) : RankRates{};
    std::vector<RankPoint> points;
    for (const Pass pass : bench.passes) {
      for (const Problem& problem : bench.problems) {
        points.push_back(measure_point(bench, flags, problem, pass, communicator));
        if (flags.baseline) {
          measure_kernels(problem, pass, flags.options(bench.plan, communicator), bench.min_seconds, communicator,
                          rates);
          if (!rates.cpu_ranks) {
            measure_alone(points.back(), bench, communicator);
          }
        }
        if (communicator.rank() == 0) {  // what there is, should a later one fail
          write_figures(bench.json, json_of(flags, communicator, rates, points));
        }
      }
    }
    if (communicator.rank() != 0) {
      return 0;
    }
    for (RankPoint& point : points) {
      if (!flags.baseline) {
        continue;
      }
      if (rates.cpu_ranks) {  // the others have left, so that all cores are there, and are not kept waiting
        point.alone_seconds = point.alone_fastest_seconds =
            seconds_alone(point.problem, point.pass, bench.plan, bench.min_seconds, bench.seed);
      }
      const ClusterRates measured = rates.of(point.pass);
      if (communicator.size() > 1 && measured.flops_per_second > 0) {
        point.prediction =
            predict(point.problem, point.pass, communicator.size(), flags.options(bench.plan, communicator), measured);
      }
    }
    const RankPoint& last = points.back();
    const std::string title = fmt::format("{} ranks ({}), {} layout, {}", communicator.size(), communicator.name(),
                                          layout_name(flags.layout), schedule_name(last.facts.schedule));
    fmt::print("{}\n{}\n", bold(title), last.problem.describe());
    print_points(points);
    report_figures(bench.json, json_of(flags, communicator, rates, points));
    write_plot(bench.plot, timeline_plot_script(
                               last.timelines, format,
                               fmt::format("{}, {} pass, {} tokens", title, pass_name(last.pass), last.problem.seq_k)));
    return 0;
  });
}

}  // namespace tessera::cli
