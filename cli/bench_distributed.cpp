#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/bench_tensors.h"
#include "cli/distributed.h"
#include "cli/file_io.h"
#include "cli/measure.h"
#include "cli/plot.h"
#include "cli/run_plan.h"
#include "cli/terminal.h"
#include "tessera/attention.h"
#include "tessera/version.h"

namespace tessera::cli {

namespace {

using Clock = std::chrono::steady_clock;

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
  double alone_seconds = 0;  // of one rank that has the whole problem
  std::vector<std::vector<TimelineEvent>> timelines;

  double seconds() const {
    return std::max_element(ranks.begin(), ranks.end(),
                            [](const RankTime& a, const RankTime& b) { return a.seconds < b.seconds; })
        ->seconds;
  }
  double efficiency() const { return alone_seconds / (seconds() * static_cast<double>(ranks.size())); }
};

// What a pair of ranks moves at once in both directions.
struct LinkRate {
  double bytes_per_second = 0;
  double message_seconds = 0;
};

template <class T>
std::vector<T> gather(Communicator& communicator, const T& mine) {
  std::vector<T> all(static_cast<std::size_t>(communicator.size()));
  const auto bytes = communicator.gather(std::as_bytes(std::span(&mine, 1)));
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    std::memcpy(&all[rank], bytes[rank].data(), sizeof(T));
  }
  return all;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The fastest of a few exchanges around the ring.
double exchange_seconds(Communicator& communicator, std::size_t bytes) {
  const int next = (communicator.rank() + 1) % communicator.size();
  const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
  const auto memory = [&] { return communicator.allocate(static_cast<std::int64_t>(bytes)); };
  const Communicator::Memory out = memory();
  const Communicator::Memory in = memory();
  const Device device = communicator.device();
  std::unique_ptr<internal::DeviceStream> stream;
  if (device.kind == DeviceKind::cuda) {
    stream = std::make_unique<internal::DeviceStream>(device.index);
  } else {
    std::memset(out.get(), 0, bytes);
  }
  void* const handle = stream ? stream->handle() : nullptr;
  double fastest = 1e9;
  for (int run = 0; run < 5; ++run) {
    gather(communicator, run);  // start together
    const auto start = Clock::now();
    Transfer arrives = communicator.receive(previous, 0, {in.get(), bytes}, handle);
    Transfer leaves = communicator.send(next, 0, {out.get(), bytes}, handle);
    communicator.flush();
    arrives.wait(handle);
    leaves.wait(handle);
    if (stream) {
      stream->synchronize();
    }
    fastest = std::min(fastest, seconds_since(start));
  }
  return fastest;
}

LinkRate measure_link(Communicator& communicator) {
  if (communicator.size() == 1) {
    return {};
  }
  const std::size_t kBytes = std::size_t{communicator.device().kind == DeviceKind::cuda ? 128U : 8U} << 20;
  const double message = exchange_seconds(communicator, 8);
  const double large = exchange_seconds(communicator, kBytes);
  return {static_cast<double>(kBytes) / std::max(large - message, 1e-9), message};
}

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
  run();  // loads kernels
  const double warm = run().seconds;
  const int wanted = std::clamp(static_cast<int>(min_seconds / std::max(warm, 1e-9)), kFewestRuns, 1000);
  runs = gather(communicator, wanted).front();
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

// The median of the whole problem on one device.
double seconds_on_one_device(const Problem& problem, Pass pass, const PlanOptions& options, double min_seconds,
                             std::uint64_t seed) {
  const BenchTensors tensors(problem, options.device, seed);
  const Plan forward = Plan::make(problem, Pass::forward, options);
  const PlanWorkspace forward_workspace(forward, options.device);
  forward.run(tensors.forward(), forward_workspace.bytes(), tensors.stream());  // O and LSE for the backward pass
  const Plan plan = Plan::make(problem, pass, options);
  const PlanWorkspace workspace(plan, options.device);
  const auto once = [&] {
    return tensors.device_stream().seconds([&] {
      if (pass == Pass::forward) {
        plan.run(tensors.forward(), workspace.bytes(), tensors.stream());
      } else {
        plan.run(tensors.backward(), workspace.bytes(), tensors.stream());
      }
    });
  };
  once();
  const double warm = once();
  std::vector<double> seconds(
      static_cast<std::size_t>(std::clamp(static_cast<int>(min_seconds / std::max(warm, 1e-9)), kFewestRuns, 1000)));
  std::generate(seconds.begin(), seconds.end(), once);
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

double seconds_alone(const Problem& problem, Pass pass, const PlanOptions& plan, double min_seconds,
                     std::uint64_t seed) {
  if (plan.device.kind == DeviceKind::cuda) {
    return seconds_on_one_device(problem, pass, plan, min_seconds, seed);
  }
  MeasureOptions options;
  options.plan = plan;
  options.impls = {plan.impl.empty() ? "flash" : plan.impl};
  options.min_seconds = min_seconds;
  options.seed = seed;
  options.errors = false;
  const Measurement one = measure(problem, pass, options).measurements.front();
  return one.measured() ? one.median() : 0;
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
  point.ranks = gather(communicator,
                       RankTime{report.seconds, report.compute_seconds, report.wait_seconds, report.transfer_seconds,
                                report.share_hidden(), report.traffic.bytes_sent, plan.facts().flops_of_pairs});
  point.timelines = gather_timelines(communicator, report.timeline);
  return point;
}

void print_points(const std::vector<RankPoint>& points) {
  Table table({"pass", "seq", "rank", "time", "compute", "waited", "hidden", "sent", "one rank alone", "efficiency"});
  for (const RankPoint& point : points) {
    for (std::size_t rank = 0; rank < point.ranks.size(); ++rank) {
      const RankTime& one = point.ranks[rank];
      const bool first = rank == 0;
      const bool alone = point.alone_seconds > 0;
      table.add({first ? std::string(pass_name(point.pass)) : "", first ? std::to_string(point.problem.seq_k) : "",
                 std::to_string(rank), time_text(one.seconds), time_text(one.compute_seconds),
                 time_text(one.wait_seconds), fmt::format("{:.0f} %", 100 * one.share_hidden),
                 bytes_text(static_cast<double>(one.bytes_sent)), first && alone ? time_text(point.alone_seconds) : "",
                 first && alone ? fmt::format("{:.1f} %", 100 * point.efficiency()) : ""});
    }
  }
  fmt::print("\n{}\n", table.text());
  fmt::print(
      "time: the median run of each rank; hidden: the share of the time of transfers that was not waited for;\n"
      "efficiency: the time of one rank that has the whole problem, over the ranks' number and the slowest one's "
      "time\n");
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
          {"runs", point.runs},
          {"seconds", point.seconds()},
          {"one_rank_seconds", point.alone_seconds},
          {"efficiency", point.efficiency()},
          {"ranks", ranks}};
}

void write_json(const RankBench& bench, const RankFlags& flags, const Communicator& communicator, const LinkRate& link,
                const std::vector<RankPoint>& points) {
  nlohmann::ordered_json document{
      {"tessera", kVersion},
      {"transport", communicator.name()},
      {"ranks", communicator.size()},
      {"ranks_per_node", points.front().facts.ranks_per_node},
      {"layout", layout_name(flags.layout)},
      {"link", {{"bytes_per_second", link.bytes_per_second}, {"message_seconds", link.message_seconds}}},
      {"points", nlohmann::ordered_json::array()}};
  for (const RankPoint& point : points) {
    document["points"].push_back(json_of(point));
  }
  write_file_atomically(bench.json, document.dump(2) + "\n");
}

}  // namespace

int bench_over_ranks(const RankBench& bench, const RankFlags& flags) {
  for (const std::string& path : {bench.json, bench.plot}) {
    if (!path.empty()) {
      require_writable(path);
    }
  }
  const PlotFormat format = bench.plot.empty() ? PlotFormat::png : plot_format(bench.plot);
  if (!bench.plot.empty()) {
    require_gnuplot();
  }
  return run_ranks(flags, bench.plan.device, [&](Communicator& communicator) {
    const LinkRate link = measure_link(communicator);
    std::vector<RankPoint> points;
    for (const Pass pass : bench.passes) {
      for (const Problem& problem : bench.problems) {
        points.push_back(measure_point(bench, flags, problem, pass, communicator));
      }
    }
    if (communicator.rank() != 0) {
      return 0;
    }
    for (RankPoint& point : points) {  // the others have left, and are not kept waiting
      if (!flags.baseline) {
        continue;
      }
      point.alone_seconds = seconds_alone(point.problem, point.pass, bench.plan, bench.min_seconds, bench.seed);
    }
    const RankPoint& last = points.back();
    const std::string title = fmt::format("{} ranks ({}), {} layout, {}", communicator.size(), communicator.name(),
                                          layout_name(flags.layout), schedule_name(last.facts.schedule));
    fmt::print("{}\n{}\n", bold(title), last.problem.describe());
    print_points(points);
    if (!bench.json.empty()) {
      write_json(bench, flags, communicator, link, points);
      fmt::print("figures written to {}\n", bench.json);
    }
    if (!bench.plot.empty()) {
      write_file_atomically(
          bench.plot, draw(timeline_plot_script(
                          last.timelines, format,
                          fmt::format("{}, {} pass, {} tokens", title, pass_name(last.pass), last.problem.seq_k))));
      fmt::print("plot written to {}\n", bench.plot);
    }
    return 0;
  });
}

}  // namespace tessera::cli
