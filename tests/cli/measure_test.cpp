#include "cli/measure.h"

#include <gtest/gtest.h>

namespace tessera::cli {
namespace {

// Under each mask the tensors of the one before give what new ones would.
TEST(Measure, TensorsSharedByProblemsThatDifferInTheMask) {
  Problem problem;
  problem.seq_q = problem.seq_k = 192;
  problem.heads_q = problem.heads_kv = 2;
  problem.dim_qk = problem.dim_v = 16;
  MeasureOptions options;
  options.impls = {"flash"};
  options.plan.threads = 1;
  options.min_seconds = 0;
  ProblemTensors tensors(problem, {});
  const BlockGrid grid{192, 192, 64, 64};
  for (const Mask& mask : {Mask::causal(), Mask(), Mask::blocks(block_patterns::random(grid, 0.5, 1))}) {
    problem.mask = mask;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      SCOPED_TRACE(mask.describe());
      const MeasuredPoint point = measure(problem, pass, options, &tensors);
      ASSERT_TRUE(point.measurements.front().measured());
      EXPECT_LT(point.measurements.front().error->error, 1e-5);
    }
  }
}

}  // namespace
}  // namespace tessera::cli
