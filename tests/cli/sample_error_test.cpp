#include "cli/sample_error.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#include "tessera/attention.h"

namespace tessera::cli {
namespace {

PlanOptions one_thread() {
  PlanOptions options;
  options.threads = 1;
  return options;
}

void run_both(const ProblemTensors& tensors) {
  attention_forward(tensors.problem(), tensors.forward(), one_thread());
  attention_backward(tensors.problem(), tensors.backward(), one_thread());
}

// Long enough for blocks of rows, with every feature that a block has to cut out of the whole.
Problem long_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 1500;
  problem.seq_k = 1700;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = 40;
  problem.dim_v = 24;
  problem.key_lengths = {10, 1650};
  problem.alibi = true;
  problem.sinks = true;
  problem.bias_shape = {2, 1, 1500, 1};
  problem.dropout = {0.25, 99, 5, 6, 7, 8};
  const BlockGrid grid{1500, 1700, 64, 128};
  std::vector<BlockMask> heads;
  for (std::uint64_t head = 0; head < 4; ++head) heads.push_back(block_patterns::random(grid, 0.5, head));
  problem.mask = Mask::window(900, 30) & Mask::blocks(BlockMask::over_heads(heads));
  return problem;
}

TEST(SampledError, SmallProblemsAreComparedWhole) {
  Problem problem;
  problem.seq_q = 50;
  problem.seq_k = 60;
  problem.dim_qk = problem.dim_v = 16;
  const ProblemTensors tensors(problem, {});
  run_both(tensors);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const SampledError sampled = sampled_error(tensors, pass);
    EXPECT_TRUE(sampled.whole);
    EXPECT_EQ(sampled.rows, 50);
    EXPECT_GT(sampled.error, 0);
    EXPECT_LT(sampled.error, 2e-6);
  }
  static_cast<float*>(tensors.dv.view().data)[7] += 1;
  EXPECT_GT(sampled_error(tensors, Pass::backward).error, 1e-3);
  EXPECT_EQ(sampled_error(tensors, Pass::backward).output, "dV");
}

TEST(SampledError, BlocksOfALongProblemAgreeWithIt) {
  TensorOptions options;
  options.alibi_per_batch = true;
  options.strides.reset();
  options.bias_expanded = true;
  const ProblemTensors tensors(long_problem(), options);
  run_both(tensors);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const SampledError sampled = sampled_error(tensors, pass);
    EXPECT_FALSE(sampled.whole);
    EXPECT_EQ(sampled.rows, 64);
    EXPECT_GT(sampled.error, 0);
    EXPECT_LT(sampled.error, 2e-6) << sampled.output;
  }
}

TEST(SampledError, BlocksOfRaggedPackedSequencesAgreeWithThem) {
  Problem problem = long_problem();
  problem.bias_shape.reset();
  problem.key_lengths.clear();
  set_ragged(problem, {0, 3, 1503}, {0, 5, 1705});
  Segments segments;
  segments.query.resize(1503);
  segments.key.resize(1705);
  for (std::size_t i = 0; i < segments.query.size(); ++i) {
    segments.query[i] = i < 3 ? 0 : static_cast<std::int32_t>((i - 3) / 400);
  }
  for (std::size_t i = 0; i < segments.key.size(); ++i) {
    segments.key[i] = i < 5 ? 0 : static_cast<std::int32_t>((i - 5) / 410);
  }
  problem.mask = Mask::causal(Alignment::top_left()) & Mask::segments(segments);
  const ProblemTensors tensors(problem, {});
  run_both(tensors);
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const SampledError sampled = sampled_error(tensors, pass);
    EXPECT_FALSE(sampled.whole);
    EXPECT_LT(sampled.error, 2e-6) << sampled.output;
  }
}

TEST(SampledError, SeesAWrongRow) {
  const ProblemTensors tensors(long_problem(), {});
  run_both(tensors);
  const TensorView& out = tensors.out.view();
  auto* last = static_cast<float*>(out.data) + out.strides[0] + 1499 * out.strides[1] + 3 * out.strides[2];
  *last += 1;
  EXPECT_GT(sampled_error(tensors, Pass::forward).error, 1e-3);
  EXPECT_EQ(sampled_error(tensors, Pass::forward).output, "O");
}

TEST(SampledError, NothingToCompare) {
  Problem problem;
  problem.batch = 0;
  problem.dim_qk = problem.dim_v = 8;
  EXPECT_EQ(sampled_error(ProblemTensors(problem, {}), Pass::forward).rows, 0);
}

}  // namespace
}  // namespace tessera::cli
