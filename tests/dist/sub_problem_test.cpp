// The parts of all pairs of ranks, element by element: together they are the whole problem, each pair of positions in one
// part, with the dropout and the ALiBi distance that it has in the whole.
#include "dist/sub_problem.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/expect_error.h"
#include "support/mask_oracle.h"

namespace tessera {
namespace {

using internal::SubProblem;
using Kind = SequenceLayout::Kind;

Segments documents(std::int64_t batch, std::int64_t queries, std::int64_t keys) {
  Segments segments;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < queries; ++i)
      segments.query.push_back(static_cast<std::int32_t>(i * (b + 3) / queries));
    for (std::int64_t j = 0; j < keys; ++j) segments.key.push_back(static_cast<std::int32_t>(j * (b + 3) / keys));
  }
  return segments;
}

struct Case {
  std::string name;
  Problem problem;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, std::int64_t queries, std::int64_t keys, const Mask& mask) {
    Problem problem;
    problem.batch = 2;
    problem.seq_q = queries;
    problem.seq_k = keys;
    problem.dim_qk = problem.dim_v = 4;
    problem.mask = mask;
    problem.dropout = {0.5, 7, 3, 9, 0, 0, 1, 1};
    all.push_back({std::move(name), problem});
  };
  add("none", 13, 13, Mask::none());
  add("causal", 19, 19, Mask::causal());
  add("causal_with_more_keys", 11, 26, Mask::causal());
  add("causal_with_fewer_keys", 26, 11, Mask::causal());
  add("window", 23, 23, Mask::window(3, 2));
  add("window_of_one", 16, 16, Mask::window(0, 0));
  add("narrow_window", 24, 21, Mask::window(1, 0, Alignment::at(-2)));
  add("left_open", 17, 17, Mask::window(Mask::kUnlimited, 4, Alignment::top_left()));
  add("right_open", 17, 20, Mask::window(2, Mask::kUnlimited));
  add("segments", 21, 24, Mask::segments(documents(2, 21, 24)));
  add("causal_segments", 24, 24, Mask::causal() & Mask::segments(documents(2, 24, 24)));
  add("fewer_tokens_than_ranks", 3, 2, Mask::causal());
  add("nothing_in_sight", 9, 9, Mask::causal(Alignment::at(-40)));
  add("key_lengths", 15, 18, Mask::causal());
  all.back().problem.key_lengths = {7, 18};
  return all;
}

// What the parts say about one pair of positions.
struct Found {
  int times = 0;
  double distance = 0;
  bool kept = false;
};

class SubProblems : public ::testing::TestWithParam<Kind> {};

void expect_the_whole(const Problem& whole, Kind kind, int ranks) {
  const SequenceLayout query_layout(kind, whole.seq_q, ranks);
  const SequenceLayout key_layout(kind, whole.seq_k, ranks);
  const auto at = [&](std::int64_t b, std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>((b * whole.seq_q + i) * whole.seq_k + j);
  };
  std::vector<Found> found(static_cast<std::size_t>(whole.batch * whole.seq_q * whole.seq_k));
  for (int query_rank = 0; query_rank < ranks; ++query_rank) {
    for (int key_rank = 0; key_rank < ranks; ++key_rank) {
      for (const SubProblem& part : internal::sub_problems(whole, query_layout, query_rank, key_layout, key_rank)) {
        const Problem& problem = part.problem;
        ASSERT_NO_THROW(validate(problem)) << problem.describe();
        std::int64_t pairs = 0;
        for (std::int64_t b = 0; b < problem.batch; ++b) {
          const SequenceSpan span = problem.sequence(b);
          const MaskSequence sequence{span.queries, span.keys, span.query_row, span.key_row};
          const std::int64_t diagonal = problem.mask.alignment().resolve(span.queries, span.keys);
          for (std::int64_t i = 0; i < span.queries; ++i) {
            for (std::int64_t j = 0; j < span.keys; ++j) {
              if (!test::attends(problem.mask, sequence, i, j)) continue;
              ++pairs;
              Found& pair =
                  found[at(part.batch_begin + b, part.query_positions.position(i), part.key_positions.position(j))];
              ++pair.times;
              pair.distance = static_cast<double>(part.slope_factor) * std::abs(static_cast<double>(i + diagonal - j)) +
                              static_cast<double>(part.distance_shift);
              pair.kept = dropout_keeps(problem.dropout, b, 0, i, j);
            }
          }
        }
        EXPECT_GT(pairs, 0) << "an empty part: " << problem.describe();
      }
    }
  }
  for (std::int64_t b = 0; b < whole.batch; ++b) {
    const SequenceSpan span = whole.sequence(b);
    const MaskSequence sequence{span.queries, span.keys, span.query_row, span.key_row};
    const std::int64_t diagonal = whole.mask.alignment().resolve(span.queries, span.keys);
    for (std::int64_t i = 0; i < whole.seq_q; ++i) {
      for (std::int64_t j = 0; j < whole.seq_k; ++j) {
        const bool attends = j < span.keys && test::attends(whole.mask, sequence, i, j);
        const Found& pair = found[at(b, i, j)];
        ASSERT_EQ(pair.times, attends ? 1 : 0) << "sequence " << b << " query " << i << " key " << j;
        if (!attends) continue;
        ASSERT_EQ(pair.kept, dropout_keeps(whole.dropout, b, 0, i, j)) << b << " " << i << " " << j;
        if (whole.alibi) {
          ASSERT_EQ(pair.distance, std::abs(static_cast<double>(i + diagonal - j))) << b << " " << i << " " << j;
        }
      }
    }
  }
}

TEST_P(SubProblems, AreTheWholeProblem) {
  for (Case row : cases()) {
    for (const bool alibi : {false, true}) {
      row.problem.alibi = alibi;
      for (const int ranks : {1, 2, 3, 5}) {
        SCOPED_TRACE(row.name + (alibi ? " alibi" : "") + " over " + std::to_string(ranks) + " ranks");
        expect_the_whole(row.problem, GetParam(), ranks);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, SubProblems, ::testing::Values(Kind::contiguous, Kind::zigzag, Kind::striped),
                         [](const auto& row) { return std::string(layout_name(row.param)); });

// Zigzag: after the first step no part of a causal problem needs a mask.
TEST(SubProblems, ZigzagNeedsNoMaskBetweenRanks) {
  Problem problem;
  problem.seq_q = problem.seq_k = 100;
  problem.dim_qk = problem.dim_v = 4;
  problem.mask = Mask::causal();
  const SequenceLayout layout(Kind::zigzag, 100, 4);
  for (int query_rank = 0; query_rank < 4; ++query_rank) {
    for (int key_rank = 0; key_rank < 4; ++key_rank) {
      for (const SubProblem& part : internal::sub_problems(problem, layout, query_rank, layout, key_rank)) {
        EXPECT_TRUE(query_rank == key_rank || part.problem.mask == Mask::none()) << part.problem.describe();
      }
    }
  }
}

TEST(SubProblems, WhatCannotBeSpreadIsRefused) {
  Problem problem;
  problem.dim_qk = problem.dim_v = 4;
  set_ragged(problem, {0, 3, 5}, {0, 3, 5});
  test::expect_error(ErrorCode::unsupported, {"cu_seqlens_q", "Mask::segments"},
                     [&] { internal::require_distributable(problem); });
  Problem blocks;
  blocks.mask = Mask::blocks(block_patterns::local({64, 64, 16, 16}, 1));
  test::expect_error(ErrorCode::unsupported, {"mask", "block mask"}, [&] { internal::require_distributable(blocks); });
  Problem doubles;
  doubles.dtype = DType::float64;
  test::expect_error(ErrorCode::unsupported, {"dtype", "float64"}, [&] { internal::require_distributable(doubles); });
  Problem far;
  far.mask = Mask::causal(Alignment::at(std::int64_t{1} << 50));
  test::expect_invalid({"diagonal", "2^40"}, [&] { internal::require_distributable(far); });
}

}  // namespace
}  // namespace tessera
