// Timing Impls against each other on one problem.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/problem_tensors.h"
#include "cli/sample_error.h"
#include "tessera/plan.h"

namespace tessera::cli {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct MeasureOptions {
  PlanOptions plan;                // impl is set for each measurement; device for all
  std::vector<std::string> impls;  // alternate in one loop, so that all see the same machine
  double min_seconds = 0.5;        // of each Impl at least, and at least kFewestRuns runs
  std::uint64_t seed = 0;
  bool errors = true;  // compare with the oracle
};
inline constexpr int kFewestRuns = 3;

// One Impl on one problem.
struct Measurement {
  std::string impl;
  std::string skipped;  // not empty: why there is nothing else
  PlanFacts facts;
  std::vector<double> seconds;  // of each run, ascending; on a GPU each may be the mean of several short ones
  std::optional<SampledError> error;

  bool measured() const { return skipped.empty(); }
  double median() const;
};

// One problem and pass.
struct MeasuredPoint {
  Problem problem;
  Pass pass = Pass::forward;
  std::vector<Measurement> measurements;

  const Measurement* of(const std::string& impl) const;
};

// An Impl that refuses, or whose workspace takes more than half of the free memory, is skipped and says so. On a GPU events
// time what runs on the device, and where the tensors fit into its L2 cache, copies of them take turns, so that each run
// reads from memory.
// `shared`: the tensors of a problem that has another mask and the same seed. Filling tensors anew for each of several masks takes
// longer than a GPU works on them.
MeasuredPoint measure(const Problem& problem, Pass pass, const MeasureOptions& options,
                      ProblemTensors* shared = nullptr);

}  // namespace tessera::cli
