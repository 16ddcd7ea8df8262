// Every Impl, on every instruction set, against the double-precision oracle under the numerics contract.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/random_problem.h"
#include "conformance/cases.h"
#include "support/conforms.h"
#include "support/functions.h"
#include "support/targets.h"

namespace tessera {
namespace {

using test::Case;
using test::expect_conforms;
using test::Target;

class Conformance : public testing::TestWithParam<Case> {};

TEST_P(Conformance, EveryImplAndInstructionSet) {
  const auto& [name, problem, tensors] = GetParam();
  expect_conforms(problem, tensors,
                  TESSERA_TWO_TARGETS ? test::two_targets(std::hash<std::string>()(name)) : test::all_targets());
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
constexpr std::uint64_t kProblemsRunPerShard = TESSERA_PROBLEMS_PER_SHARD;

// 2,000 random problems, fewer under a sanitizer.
class RandomProblems : public testing::TestWithParam<std::uint64_t> {};

TEST_P(RandomProblems, Conform) {
  for (std::uint64_t n = 0; n < kProblemsRunPerShard; ++n) {
    const std::uint64_t index = GetParam() * kProblemsPerShard + n;
    SCOPED_TRACE("tessera verify --random 1 --seed " + std::to_string(kSeed) + " --first " + std::to_string(index));
    const cli::RandomProblem random = cli::random_problem(kSeed, index);
    expect_conforms(random.problem, random.tensors, test::two_targets(index));
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, RandomProblems, testing::Range(std::uint64_t{0}, kShards));

// Random problems with functions of users on top.
class RandomFunctions : public testing::TestWithParam<std::uint64_t> {};

TEST_P(RandomFunctions, Conform) {
  for (std::uint64_t n = 0; n < kProblemsRunPerShard / 2; ++n) {
    const std::uint64_t index = GetParam() * kProblemsPerShard + n;
    SCOPED_TRACE("problem " + std::to_string(index) + " of seed " + std::to_string(kSeed + 1));
    const cli::RandomProblem random = cli::random_problem(kSeed + 1, index);
    expect_conforms(test::with_functions(random.problem, index), random.tensors, test::two_targets(index));
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, RandomFunctions, testing::Range(std::uint64_t{0}, std::uint64_t{6}));

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
