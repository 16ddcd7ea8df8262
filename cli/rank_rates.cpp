#include "cli/rank_rates.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <optional>

#include "cli/bench_tensors.h"
#include "cli/measure.h"
#include "cli/run_plan.h"
#include "cuda/stream.h"
#include "dist/block_tasks.h"
#include "dist/fuse.h"
#include "dist/ring_program.h"
#include "dist/tensor_ops.h"

namespace tessera::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 5;

std::unique_ptr<internal::DeviceStream> stream_of(const Communicator& communicator) {
  const Device device = communicator.device();
  return device.kind == DeviceKind::cuda ? std::make_unique<internal::DeviceStream>(device.index) : nullptr;
}

// Written once, so that its pages are there.
Communicator::Memory touched(Communicator& communicator, std::size_t bytes) {
  Communicator::Memory memory = communicator.allocate(static_cast<std::int64_t>(bytes));
  if (communicator.device().kind == DeviceKind::cpu) {
    std::memset(memory.get(), 0, bytes);
  }
  return memory;
}

// The fastest of a few runs that all ranks start together.
template <class Work>
double fastest_together(Communicator& communicator, const Work& work) {
  double fastest = 1e9;
  for (int run = 0; run < kRuns; ++run) {
    gather(communicator, run);
    const auto start = Clock::now();
    work();
    fastest = std::min(fastest, seconds_since(start));
  }
  return fastest;
}

// Around the ring.
double exchange_seconds(Communicator& communicator, std::size_t bytes) {
  const int next = (communicator.rank() + 1) % communicator.size();
  const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
  const Communicator::Memory out = touched(communicator, bytes);
  const Communicator::Memory in = touched(communicator, bytes);
  const auto stream = stream_of(communicator);
  void* const handle = stream ? stream->handle() : nullptr;
  return fastest_together(communicator, [&] {
    Transfer arrives = communicator.receive(previous, 0, {in.get(), bytes}, handle);
    Transfer leaves = communicator.send(next, 0, {out.get(), bytes}, handle);
    communicator.flush();
    arrives.wait(handle);
    leaves.wait(handle);
    if (stream) {
      stream->synchronize();
    }
  });
}

// Two terms read and their sum written: in 16 bits on a GPU, in float32 on the CPU, as partial results are.
double sum_bytes_per_second(Communicator& communicator) {
  const Device device = communicator.device();
  const bool on_cpu = device.kind == DeviceKind::cpu;
  const DType dtype = on_cpu ? DType::float32 : DType::bfloat16;
  const std::int64_t elements = std::int64_t{1} << (on_cpu ? 21 : 26);
  const auto bytes = static_cast<std::size_t>(elements * dtype_bytes(dtype));
  const Communicator::Memory a = touched(communicator, bytes);
  const Communicator::Memory b = touched(communicator, bytes);
  const auto view = [&](const Communicator::Memory& memory) {
    return TensorView(memory.get(), dtype, {elements}, device);
  };
  const auto stream = stream_of(communicator);
  const double seconds = fastest_together(communicator, [&] {
    internal::sum(std::to_array<ConstTensorView>({view(a), view(b)}), view(a), stream ? stream->handle() : nullptr);
    if (stream) {
      stream->synchronize();
    }
  });
  return 3 * static_cast<double>(bytes) / seconds;
}

double seconds_on_cpu(const Problem& problem, Pass pass, const PlanOptions& plan, double min_seconds,
                      std::uint64_t seed) {
  MeasureOptions options;
  options.plan = plan;
  options.impls = {plan.impl.empty() ? "flash" : plan.impl};
  options.min_seconds = min_seconds;
  options.seed = seed;
  options.errors = false;
  const Measurement one = measure(problem, pass, options).measurements.front();
  return one.measured() ? one.median() : 0;
}

nlohmann::ordered_json kernels_to_json(const std::vector<KernelRate>& kernels) {
  auto list = nlohmann::ordered_json::array();
  for (const KernelRate& one : kernels) {
    list.push_back({{"queries", one.queries},
                    {"keys", one.keys},
                    {"masked", one.masked},
                    {"flops_per_second", one.flops_per_second}});
  }
  return list;
}

std::vector<KernelRate> kernels_from_json(const nlohmann::json& json) {
  std::vector<KernelRate> kernels;
  for (const auto& one : json) {
    kernels.push_back({one.at("queries"), one.at("keys"), one.at("masked"), one.at("flops_per_second")});
  }
  return kernels;
}

}  // namespace

ClusterRates RankRates::of(Pass pass) const {
  ClusterRates rates;
  rates.kernels = pass == Pass::forward ? forward : backward;
  rates.flops_per_second = rates.kernels.empty() ? 0 : rates.kernels.back().flops_per_second;
  rates.node_bytes_per_second = link_bytes_per_second;
  rates.network_bytes_per_second = link_bytes_per_second;
  rates.message_seconds = message_seconds;
  rates.memory_bytes_per_second = memory_bytes_per_second;
  rates.cpu_ranks = cpu_ranks;
  return rates;
}

nlohmann::ordered_json RankRates::to_json() const {
  return {{"link_bytes_per_second", link_bytes_per_second},
          {"message_seconds", message_seconds},
          {"memory_bytes_per_second", memory_bytes_per_second},
          {"cpu_ranks", cpu_ranks},
          {"forward", kernels_to_json(forward)},
          {"backward", kernels_to_json(backward)}};
}

RankRates RankRates::from_json(const nlohmann::json& json) {
  RankRates rates;
  rates.link_bytes_per_second = json.at("link_bytes_per_second");
  rates.message_seconds = json.at("message_seconds");
  rates.memory_bytes_per_second = json.at("memory_bytes_per_second");
  rates.cpu_ranks = json.at("cpu_ranks");
  rates.forward = kernels_from_json(json.at("forward"));
  rates.backward = kernels_from_json(json.at("backward"));
  return rates;
}

RankRates measure_rates(Communicator& communicator) {
  RankRates rates;
  rates.cpu_ranks = communicator.device().kind == DeviceKind::cpu;
  rates.memory_bytes_per_second = sum_bytes_per_second(communicator);
  if (communicator.size() > 1) {
    const std::size_t bytes = std::size_t{rates.cpu_ranks ? 8U : 128U} << 20;
    rates.message_seconds = exchange_seconds(communicator, 8);
    const double large = exchange_seconds(communicator, bytes);
    rates.link_bytes_per_second = static_cast<double>(bytes) / std::max(large - rates.message_seconds, 1e-9);
  }
  return rates;
}

void measure_kernels(const Problem& whole, Pass pass, const DistributedOptions& options, double min_seconds,
                     Communicator& communicator, RankRates& rates) {
  const internal::RingGroup group(whole, pass, communicator.size(), options);
  struct Largest {
    Problem problem;
    double pairs = 0;
  };
  std::array<Largest, 2> largest;
  for (int owner = 0; owner < communicator.size(); ++owner) {
    for (const internal::SubProblem& part : internal::fused_parts(group, 0, owner)) {
      TileSchedule::Counts tiles;
      internal::count({part}, tiles);
      Largest& other = largest[part.problem.mask == Mask::none() ? 0 : 1];
      if (static_cast<double>(tiles.pairs) > other.pairs) {
        other = {part.problem, static_cast<double>(tiles.pairs)};
      }
    }
  }
  for (std::size_t masked = 0; masked < largest.size(); ++masked) {
    auto& [problem, pairs] = largest[masked];
    if (pairs == 0) {
      continue;
    }
    problem.output_dtype = internal::term_dtype(whole, communicator.device());
    gather(communicator, 0);  // start together
    const double mine = seconds_alone(problem, pass, options.plan, min_seconds, 0);
    const std::vector<double> all = gather(communicator, mine);
    const double slowest = *std::max_element(all.begin(), all.end());
    if (slowest > 0) {
      rates.kernels(pass).push_back(
          {problem.seq_q, problem.seq_k, masked == 1, pairs * internal::flops_per_pair(whole, pass) / slowest});
    }
  }
}

double seconds_alone(const Problem& problem, Pass pass, const PlanOptions& options, double min_seconds,
                     std::uint64_t seed) {
  if (options.device.kind == DeviceKind::cpu) {
    return seconds_on_cpu(problem, pass, options, min_seconds, seed);
  }
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

}  // namespace tessera::cli
