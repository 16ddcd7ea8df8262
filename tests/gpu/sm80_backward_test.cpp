// The backward pass of the sm80 Impl: sums whose order is fixed, sums in any order, and gradients that other Impls have not.
#include <string>
#include <vector>

#include "gpu/gpu_runs.h"

namespace tessera {
namespace {

using test::gpu_problem;

class Sm80Backward : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto reason = test::gpu_missing("sm80")) GTEST_SKIP() << *reason;
  }

  static PlanOptions options() { return test::gpu_targets("sm80").front().options(); }
  static bool lacks(const Problem& problem) {
    return test::kernel_missing(test::refusal(problem, Pass::backward, options()));
  }
  static void check(const Problem& problem, bool deterministic = true) {
    SCOPED_TRACE(problem.describe());
    if (!lacks(problem)) test::expect_conforms(problem, {}, test::gpu_targets("sm80"), deterministic);
  }
};

// More tiles of keys than a group of blocks, grouped heads, an odd number of heads to deal in pairs, tiles that no query sees.
std::vector<Problem> in_turns() {
  std::vector<Problem> all;
  for (const std::int64_t dim : {64, 128}) {
    all.push_back(gpu_problem(1000, 1000, 4, dim));
    all.push_back(gpu_problem(1500, 1500, 3, dim, Mask::causal()));
    all.push_back(gpu_problem(900, 300, 2, dim, Mask::causal()));
    all.push_back(gpu_problem(700, 1100, 2, dim, Mask::causal(Alignment::top_left())));
    all.push_back(gpu_problem(1200, 1300, 2, dim, Mask::window(100, 30)));
    Problem grouped = gpu_problem(640, 640, 8, dim, Mask::causal());
    grouped.heads_kv = 2;
    all.push_back(grouped);
  }
  return all;
}

TEST_F(Sm80Backward, SameBitsInFiftyRuns) {
  std::vector<Problem> problems = in_turns();
  Problem ragged = gpu_problem(0, 0, 4, 64, Mask::window(300, 10));
  set_ragged(ragged, {0, 700, 701, 1600}, {0, 900, 1000, 1900});
  problems.push_back(ragged);
  for (const Problem& problem : problems) {
    SCOPED_TRACE(problem.describe());
    if (lacks(problem)) continue;
    test::GpuRuns runs(problem, {}, options());
    const std::vector<std::byte> first = runs.run_to_bytes();
    for (int run = 1; run < 50; ++run) {
      ASSERT_TRUE(first == runs.run_to_bytes()) << "run " << run;
    }
  }
}

TEST_F(Sm80Backward, SumsInTurnsAndInAnyOrderConform) {
  for (Problem problem : in_turns()) {
    check(problem);
    check(problem, false);
    problem.dtype = DType::float32;
    check(problem);
    check(problem, false);
  }
}

TEST_F(Sm80Backward, BiasGradientOfEveryBroadcast) {
  for (int broadcast = 0; broadcast < 16; ++broadcast) {
    const auto extent = [&](int axis, std::int64_t whole) { return (broadcast >> axis & 1) != 0 ? 1 : whole; };
    Problem problem = gpu_problem(150, 200, 4, 64, Mask::causal());
    problem.batch = 2;
    problem.heads_kv = 2;
    problem.bias_shape = {{extent(0, 2), extent(1, 4), extent(2, 150), extent(3, 200)}};
    problem.bias_dtype = DType::float32;
    check(problem);
  }
}

TEST_F(Sm80Backward, EveryModifierInTurns) {
  for (const std::int64_t dim : {64, 100, 128, 200}) {
    Problem problem = gpu_problem(300, 400, 4, dim, Mask::causal());
    problem.softcap = 5.0F;
    problem.alibi = true;
    problem.sinks = true;
    problem.dropout.probability = 0.3;
    problem.dropout.seed = 11;
    check(problem);
    check(problem, false);
    problem.output_dtype = DType::float32;
    check(problem);
  }
}

}  // namespace
}  // namespace tessera
