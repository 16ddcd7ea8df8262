#include "tessera/problem.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace tessera {
namespace {

Problem small_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 5;
  problem.seq_k = 7;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = 16;
  problem.dim_v = 8;
  return problem;
}

TEST(Problem, ScaleDefaultsToTheInverseRootOfTheDimension) {
  Problem problem = small_problem();
  EXPECT_FLOAT_EQ(problem.softmax_scale(), 0.25F);
  problem.scale = 3.0F;
  EXPECT_FLOAT_EQ(problem.softmax_scale(), 3.0F);
}

TEST(Problem, BatchLayout) {
  const Problem problem = small_problem();
  EXPECT_FALSE(problem.ragged());
  EXPECT_EQ(problem.total_q(), 10);
  EXPECT_EQ(problem.total_k(), 14);
  EXPECT_EQ(problem.group_size(), 2);
  const SequenceSpan span = problem.sequence(1);
  EXPECT_EQ(span.queries, 5);
  EXPECT_EQ(span.keys, 7);
  EXPECT_EQ(span.query_row, 5);
  EXPECT_EQ(span.key_row, 7);
}

TEST(Problem, RaggedLayout) {
  Problem problem = small_problem();
  set_ragged(problem, {0, 3, 3, 9}, {0, 0, 4, 6});
  EXPECT_TRUE(problem.ragged());
  EXPECT_EQ(problem.batch, 3);
  EXPECT_EQ(problem.seq_q, 6);
  EXPECT_EQ(problem.seq_k, 4);
  EXPECT_EQ(problem.total_q(), 9);
  EXPECT_EQ(problem.total_k(), 6);
  const SequenceSpan span = problem.sequence(2);
  EXPECT_EQ(span.queries, 6);
  EXPECT_EQ(span.keys, 2);
  EXPECT_EQ(span.query_row, 3);
  EXPECT_EQ(span.key_row, 4);
  EXPECT_NO_THROW(validate(problem));
}

TEST(Problem, KeyLengthsShortenTheKeys) {
  Problem problem = small_problem();
  problem.key_lengths = {7, 3};
  EXPECT_EQ(problem.sequence(0).keys, 7);
  EXPECT_EQ(problem.sequence(1).keys, 3);
  EXPECT_EQ(problem.sequence(1).key_row, 7);
}

// Bottom-right alignment counts from the last key in use.
TEST(Problem, ScheduleAlignsToTheKeysInUse) {
  Problem problem = small_problem();
  problem.mask = Mask::causal();
  problem.key_lengths = {7, 3};
  EXPECT_EQ(problem.schedule(0, 1, 1).keys_of(4), (Range{0, 7}));
  EXPECT_EQ(problem.schedule(1, 1, 1).keys_of(4), (Range{0, 3}));
  EXPECT_EQ(problem.schedule(1, 1, 1).keys_of(2), (Range{0, 1}));
  EXPECT_EQ(problem.schedule(1, 1, 1).keys_of(1), (Range{0, 0}));
}

TEST(Problem, ScheduleReadsTheSegmentsOfItsOwnSequence) {
  Problem problem = small_problem();
  problem.seq_q = 2;
  problem.seq_k = 3;
  problem.mask = Mask::segments({{0, 0, 0, 1}, {0, 0, 0, 0, 1, 1}});
  EXPECT_EQ(problem.schedule(0, 1, 1).keys_of(1), (Range{0, 3}));
  EXPECT_EQ(problem.schedule(1, 1, 1).keys_of(0), (Range{0, 1}));
  EXPECT_EQ(problem.schedule(1, 1, 1).keys_of(1), (Range{1, 3}));
}

TEST(Problem, OutputDtypeFollowsTheInputs) {
  Problem problem = small_problem();
  problem.dtype = DType::bfloat16;
  EXPECT_EQ(problem.out_dtype(), DType::bfloat16);
  problem.output_dtype = DType::float32;
  EXPECT_EQ(problem.out_dtype(), DType::float32);
}

TEST(Problem, ComparesByValue) {
  Problem other = small_problem();
  EXPECT_EQ(other, small_problem());
  other.mask = Mask::causal();
  EXPECT_NE(other, small_problem());
  other = small_problem();
  other.dropout.seed = 1;
  EXPECT_NE(other, small_problem());
}

TEST(Problem, DescribeNamesEveryFieldThatWasSet) {
  Problem problem = small_problem();
  problem.dtype = DType::bfloat16;
  problem.output_dtype = DType::float32;
  problem.key_lengths = {7, 3};
  problem.mask = Mask::window(4, 0);
  problem.scale = 0.5F;
  problem.softcap = 30.0F;
  problem.alibi = true;
  problem.sinks = true;
  problem.bias_shape = {{2, 1, 5, 7}};
  problem.dropout = {0.25, 99, 0, 0, 0, 0};
  const std::string text = problem.describe();
  EXPECT_EQ(text.find('\n'), std::string::npos);
  for (const char* part : {"bfloat16", "float32", "batch 2", "5x7", "4:2", "16:8", "[7, 3]", "window(4, 0)",
                           "scale 0.5", "softcap 30", "alibi", "sinks", "[2, 1, 5, 7]", "dropout 0.25", "99"}) {
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
  }
}

TEST(Problem, DescribeLeavesDefaultsOut) {
  const std::string text = small_problem().describe();
  for (const char* part : {"mask", "scale", "softcap", "alibi", "sinks", "bias", "dropout", "key_lengths"}) {
    EXPECT_EQ(text.find(part), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace tessera
