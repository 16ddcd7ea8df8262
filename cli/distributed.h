// verify and bench over ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/compare.h"
#include "cli/ranks.h"

namespace tessera::cli {

// A table of the errors beside their bounds, on stdout.
void print_checks(const CheckResult& result);

// Compares one problem over ranks with the oracle, by the bounds of check_problem. Returns the exit status.
int verify_over_ranks(const Problem& problem, const CheckOptions& options, const RankFlags& flags);

struct RankBench {
  std::vector<Problem> problems;
  std::vector<Pass> passes;
  PlanOptions plan;
  double min_seconds = 0.5;
  std::uint64_t seed = 0;
  std::string json;
  std::string plot;  // of the last problem and pass: what every rank computes and transfers when
};
// Times every problem and pass, beside one rank alone. Returns the exit status.
int bench_over_ranks(const RankBench& bench, const RankFlags& flags);

}  // namespace tessera::cli
