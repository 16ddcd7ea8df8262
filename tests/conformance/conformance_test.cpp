// Every Impl, on every instruction set, against the double-precision oracle under the numerics contract.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "cli/compare.h"
#include "cli/random_problem.h"
#include "conformance/cases.h"
#include "support/targets.h"

namespace tessera {
namespace {

using test::Case;
using test::Target;

void expect_conforms(const Problem& problem, const cli::TensorOptions& tensors, const Target& target) {
  cli::CheckOptions options;
  options.tensors = tensors;
  options.plan = target.options();
  const cli::CheckResult result = cli::check_problem(problem, options);
  EXPECT_EQ(result.forward.impl, target.impl);
  if (!target.isa.empty()) {
    EXPECT_EQ(result.forward.isa, target.isa);
    EXPECT_EQ(result.backward->isa, target.isa);
  }
  EXPECT_GE(result.outputs.size(), 5U);
  for (const cli::OutputCheck& check : result.outputs) {
    EXPECT_TRUE(check.ok()) << target.name() << " " << check.output << ": error " << check.error << ", allowed "
                            << check.allowed << (check.by_typical_size ? " of the typical size" : "") << " "
                            << check.mismatch << "\n  " << problem.describe();
  }
}

class Conformance : public testing::TestWithParam<Case> {};

TEST_P(Conformance, EveryImplAndInstructionSet) {
  const auto& [name, problem, tensors] = GetParam();
  for (const Target& target : test::all_targets()) {
    expect_conforms(problem, tensors, target);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, Conformance, testing::ValuesIn(test::conformance_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(ConformanceTable, NamesAreUnique) {
  std::set<std::string> names;
  for (const Case& row : test::conformance_cases()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
  }
}

// An Impl that is available takes every problem of the table: a refusal would be a hole in the table.
TEST(ConformanceTable, EveryImplTakesEveryCase) {
  for (const Target& target : test::all_targets()) {
    for (const Case& row : test::conformance_cases()) {
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        EXPECT_TRUE(test::accepts(row.problem, pass, target)) << target.name() << " " << row.name;
      }
    }
  }
}

constexpr std::uint64_t kSeed = 20240229;
constexpr std::uint64_t kShards = 20;
constexpr std::uint64_t kProblemsPerShard = 100;

// 2,000 random problems, each on the default instruction set and on one of the other targets in turn.
class RandomProblems : public testing::TestWithParam<std::uint64_t> {};

TEST_P(RandomProblems, Conform) {
  const std::vector<Target> targets = test::all_targets();
  const Target flash{"flash", cpu_info().selected_isa};
  for (std::uint64_t n = 0; n < kProblemsPerShard; ++n) {
    const std::uint64_t index = GetParam() * kProblemsPerShard + n;
    SCOPED_TRACE("tessera verify --random 1 --seed " + std::to_string(kSeed) + ", problem " + std::to_string(index));
    const cli::RandomProblem random = cli::random_problem(kSeed, index);
    expect_conforms(random.problem, random.tensors, flash);
    const Target& other = targets[index % targets.size()];
    if (other.name() != flash.name()) {
      expect_conforms(random.problem, random.tensors, other);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, RandomProblems, testing::Range(std::uint64_t{0}, kShards));

// The random problems reach the whole feature space: each feature is drawn at least twenty times.
TEST(RandomProblems, CoverEveryFeature) {
  std::map<std::string, int> counts;
  for (std::uint64_t index = 0; index < kShards * kProblemsPerShard; ++index) {
    for (const std::string& feature : cli::features_of(cli::random_problem(kSeed, index))) {
      ++counts[feature];
    }
  }
  EXPECT_GE(counts.size(), 26U);
  for (const auto& [feature, count] : counts) {
    EXPECT_GE(count, 20) << feature;
  }
}

}  // namespace
}  // namespace tessera
