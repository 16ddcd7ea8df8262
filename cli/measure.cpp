#include "cli/measure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "cli/compare.h"
#include "cli/terminal.h"
#include "tessera/attention.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

constexpr int kMostRuns = 1000;

double free_memory_bytes() {
  return static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

// A plan with its workspace, ready to be timed.
struct Contestant {
  Plan plan;
  PlanWorkspace workspace;

  explicit Contestant(Plan made) : plan(std::move(made)), workspace(plan) {}

  double time(const ProblemTensors& tensors) const {
    const auto start = std::chrono::steady_clock::now();
    if (plan.pass() == Pass::forward) {
      plan.run(tensors.forward(), workspace.bytes());
    } else {
      plan.run(tensors.backward(), workspace.bytes());
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

// The plan, or in `skipped` why there is none.
std::unique_ptr<Contestant> enter(const Problem& problem, Pass pass, const PlanOptions& options, std::string& skipped) {
  try {
    Plan plan = Plan::make(problem, pass, options);
    const auto bytes = static_cast<double>(plan.workspace_bytes());
    if (bytes > free_memory_bytes() / 2) {
      skipped = fmt::format("its workspace of {} is more than half of the free memory, {}", bytes_text(bytes),
                            bytes_text(free_memory_bytes()));
      return nullptr;
    }
    return std::make_unique<Contestant>(std::move(plan));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) {
      throw;
    }
    skipped = error.what();
    return nullptr;
  }
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

MeasuredPoint measure(const Problem& problem, Pass pass, const MeasureOptions& options) {
  MeasuredPoint point{problem, pass, {}};
  TensorOptions random;
  random.seed = options.seed;
  const ProblemTensors tensors(problem, random);
  if (pass == Pass::backward) {  // O and LSE for it to read
    attention_forward(problem, tensors.forward(), options.plan);
  }
  std::vector<std::unique_ptr<Contestant>> contestants;
  for (const std::string& impl : options.impls) {
    Measurement& one = point.measurements.emplace_back();
    one.impl = impl;
    PlanOptions plan = options.plan;
    plan.impl = impl;
    contestants.push_back(enter(problem, pass, plan, one.skipped));
    if (one.measured()) {
      one.facts = contestants.back()->plan.facts();
      contestants.back()->time(tensors);  // warms caches and pages up
      if (options.errors) {
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
        seconds.push_back(contestants[i]->time(tensors));
        spent[i] += seconds.back();
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
