#include "cli/measure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <optional>

#include "cli/device_tensors.h"
#include "cli/run_plan.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostRuns = 1000;
// Runs on a GPU that are shorter are timed several at a time: events tell microseconds.
constexpr double kShortSeconds = 1e-3;
constexpr int kMostAtOnce = 100;
constexpr std::int64_t kMostCopies = 64;

double free_memory_bytes(const Device& device) {
  if (device.kind == DeviceKind::cuda) {
    return static_cast<double>(internal::device_free_bytes(device.index));
  }
  return static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

// A plan with its workspace, ready to be timed.
struct Contestant {
  Plan plan;
  PlanWorkspace workspace;

  Contestant(Plan made, const Device& device) : plan(std::move(made)), workspace(plan, device) {}
};

// The plan, or in `skipped` why there is none.
std::unique_ptr<Contestant> enter(const Problem& problem, Pass pass, const PlanOptions& options, std::string& skipped) {
  try {
    Plan plan = Plan::make(problem, pass, options);
    const auto bytes = static_cast<double>(plan.workspace_bytes());
    const double free_bytes = free_memory_bytes(options.device);
    if (bytes > free_bytes / 2) {
      skipped = fmt::format("its workspace of {} is more than half of the free memory, {}", bytes_text(bytes),
                            bytes_text(free_bytes));
      return nullptr;
    }
    return std::make_unique<Contestant>(std::move(plan), options.device);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) {
      throw;
    }
    skipped = error.what();
    return nullptr;
  }
}

// Where the runs happen: one device, the tensors there and a clock.
class Track {
 public:
  Track() = default;
  Track(const Track&) = delete;
  Track& operator=(const Track&) = delete;
  virtual ~Track() = default;
  // Of one run.
  virtual double seconds(const Contestant& contestant) = 0;
  // Brings the results of the last run to the host's tensors.
  virtual void fetch(Pass pass) = 0;
};

class CpuTrack final : public Track {
 public:
  explicit CpuTrack(const ProblemTensors& tensors) : tensors_(tensors) {}

  double seconds(const Contestant& contestant) override {
    const auto start = Clock::now();
    if (contestant.plan.pass() == Pass::forward) {
      contestant.plan.run(tensors_.forward(), contestant.workspace.bytes());
    } else {
      contestant.plan.run(tensors_.backward(), contestant.workspace.bytes());
    }
    return seconds_since(start);
  }
  void fetch(Pass /*pass*/) override {}

 private:
  const ProblemTensors& tensors_;
};

std::int64_t bytes_of(std::initializer_list<ConstTensorView> views) {
  std::int64_t bytes = 0;
  for (const ConstTensorView& view : views) {
    bytes += view.absent() ? 0 : view.elements() * dtype_bytes(view.dtype);
  }
  return bytes;
}

// What one run reads and writes of its tensors.
std::int64_t touched_bytes(const ProblemTensors& tensors, Pass pass) {
  const BackwardTensors all = tensors.backward();
  const std::int64_t forward = bytes_of({all.q, all.k, all.v, all.out, all.lse});
  return pass == Pass::forward ? forward : forward + bytes_of({all.dout, all.dlse, all.dq, all.dk, all.dv});
}

class CudaTrack final : public Track {
 public:
  CudaTrack(const ProblemTensors& tensors, Pass pass, int device) : tensors_(tensors), stream_(device) {
    // Twice the cache: what one round leaves in it is of no use to the next.
    const std::int64_t bytes = std::max<std::int64_t>(touched_bytes(tensors, pass), 1);
    const std::int64_t copies = internal::ceil_div(2 * internal::cuda_device(device).l2_bytes, bytes);
    for (std::int64_t n = 0; n < std::clamp<std::int64_t>(copies, 1, kMostCopies); ++n) {
      copies_.push_back(std::make_unique<DeviceTensors>(tensors, device));
    }
  }

  double seconds(const Contestant& contestant) override {
    const double one = seconds_of(contestant, 1);
    const int at_once = std::min(static_cast<int>(kShortSeconds / std::max(one, 1e-9)), kMostAtOnce);
    return at_once > 1 ? seconds_of(contestant, at_once) : one;
  }
  void fetch(Pass pass) override { copies_[last_]->download(tensors_, pass); }

 private:
  // The mean of several runs.
  double seconds_of(const Contestant& contestant, int runs) {
    return stream_.seconds([&] {
      for (int run = 0; run < runs; ++run) {
        last_ = (last_ + 1) % copies_.size();
        enqueue(contestant, *copies_[last_]);
      }
    }) / runs;
  }
  void enqueue(const Contestant& contestant, const DeviceTensors& tensors) const {
    if (contestant.plan.pass() == Pass::forward) {
      contestant.plan.run(tensors.moved(tensors_.forward()), contestant.workspace.bytes(), stream_.handle());
    } else {
      contestant.plan.run(tensors.moved(tensors_.backward()), contestant.workspace.bytes(), stream_.handle());
    }
  }

  const ProblemTensors& tensors_;
  internal::DeviceStream stream_;
  std::vector<std::unique_ptr<DeviceTensors>> copies_;
  std::size_t last_ = 0;
};

std::unique_ptr<Track> make_track(const ProblemTensors& tensors, Pass pass, const Device& device) {
  if (device.kind == DeviceKind::cuda) {
    return std::make_unique<CudaTrack>(tensors, pass, device.index);
  }
  return std::make_unique<CpuTrack>(tensors);
}

}  // namespace

double Measurement::median() const {
  const std::size_t half = seconds.size() / 2;
  return seconds.size() % 2 == 1 ? seconds[half] : (seconds[half - 1] + seconds[half]) / 2;
}

const Measurement* MeasuredPoint::of(const std::string& impl) const {
  const auto found = std::find_if(measurements.begin(), measurements.end(),
                                  [&](const Measurement& one) { return one.impl == impl && one.measured(); });
  return found == measurements.end() ? nullptr : &*found;
}

MeasuredPoint measure(const Problem& problem, Pass pass, const MeasureOptions& options, ProblemTensors* shared) {
  MeasuredPoint point{problem, pass, {}};
  std::vector<std::unique_ptr<Contestant>> contestants;
  for (const std::string& impl : options.impls) {
    Measurement& one = point.measurements.emplace_back();
    one.impl = impl;
    PlanOptions plan = options.plan;
    plan.impl = impl;
    contestants.push_back(enter(problem, pass, plan, one.skipped));
  }
  if (std::none_of(contestants.begin(), contestants.end(),
                   [](const auto& contestant) { return contestant != nullptr; })) {
    return point;
  }
  std::optional<ProblemTensors> own;
  if (shared == nullptr) {
    TensorOptions random;
    random.seed = options.seed;
    shared = &own.emplace(problem, random);
  }
  shared->set_mask(problem.mask);
  const ProblemTensors& tensors = *shared;
  if (pass == Pass::backward) {  // O and LSE for it to read
    run_plan(Plan::make(problem, Pass::forward, options.plan), options.plan.device, tensors);
  }
  const std::unique_ptr<Track> track = make_track(tensors, pass, options.plan.device);
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    if (contestants[i]) {
      Measurement& one = point.measurements[i];
      one.facts = contestants[i]->plan.facts();
      track->seconds(*contestants[i]);  // warms caches and pages up
      if (options.errors) {
        track->fetch(pass);
        one.error = sampled_error(tensors, pass);
      }
    }
  }
  std::vector<double> spent(contestants.size(), 0);
  bool more = true;
  for (int run = 0; run < kMostRuns && more; ++run) {
    more = false;
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      auto& seconds = point.measurements[i].seconds;
      if (contestants[i] && (run < kFewestRuns || spent[i] < options.min_seconds)) {
        const auto start = Clock::now();
        seconds.push_back(track->seconds(*contestants[i]));
        spent[i] += seconds_since(start);
        more = true;
      }
    }
  }
  for (Measurement& one : point.measurements) {
    std::sort(one.seconds.begin(), one.seconds.end());
  }
  return point;
}

}  // namespace tessera::cli
