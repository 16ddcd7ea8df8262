// The parts of all pairs of ranks, element by element: together they are the whole problem, each pair of positions in one
// part, with the dropout and the ALiBi distance that it has in the whole.
#include "dist/sub_problem.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "support/documents.h"
#include "support/expect_error.h"
#include "support/mask_oracle.h"

namespace tessera {
namespace {

using internal::SubProblem;
using Kind = SequenceLayout::Kind;

// Pairs in no order, so that many blocks are partial.
BlockMask scattered(const BlockGrid& grid, std::int64_t one_in) {
  std::vector<std::uint8_t> attends;
  for (std::int64_t n = 0; n < grid.queries * grid.keys; ++n) {
    const bool in_a_full_corner = n / grid.keys < 20 && n % grid.keys < 20;
    attends.push_back(in_a_full_corner || n * 2654435761 % 97 % one_in == 0 ? 1 : 0);
  }
  return BlockMask::from_dense(grid, attends);
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
  add("segments", 21, 24, Mask::segments(test::documents(2, 21, 24)));
  add("causal_segments", 24, 24, Mask::causal() & Mask::segments(test::documents(2, 24, 24)));
  add("fewer_tokens_than_ranks", 3, 2, Mask::causal());
  add("nothing_in_sight", 9, 9, Mask::causal(Alignment::at(-40)));
  add("key_lengths", 15, 18, Mask::causal());
  all.back().problem.key_lengths = {7, 18};
  const auto random = [](const BlockGrid& grid, std::uint64_t seed) { return block_patterns::random(grid, 0.3, seed); };
  add("blocks", 192, 192, Mask::blocks(random({192, 192, 16, 32}, 1)));
  add("causal_blocks_of_any_length", 131, 205, Mask::causal() & Mask::blocks(random({131, 205, 32, 16}, 2)));
  add("blocks_of_pairs", 83, 70, Mask::window(30, 9) & Mask::blocks(scattered({83, 70, 16, 48}, 3)));
  add("blocks_by_head", 160, 160,
      Mask::blocks(BlockMask::over_heads(
          std::array{random({160, 160, 32, 32}, 3), block_patterns::local({160, 160, 32, 32}, 0)})));
  all.back().problem.heads_q = 2;
  add("blocks_by_sequence", 96, 100,
      Mask::causal() & Mask::segments(test::documents(2, 96, 100)) &
          Mask::blocks(BlockMask::over_batch(std::array{random({96, 100, 16, 16}, 4), random({96, 100, 16, 16}, 5)})));
  all.back().problem.key_lengths = {100, 61};
  add("blocks_that_keep_all", 64, 64, Mask::causal() & Mask::blocks(block_patterns::local({64, 64, 16, 16}, 9)));
  add("blocks_that_keep_nothing", 64, 64, Mask::blocks(block_patterns::random({64, 64, 16, 16}, 0, 1)));
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
  const auto at = [&](std::int64_t b, std::int64_t head, std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>(((b * whole.heads_q + head) * whole.seq_q + i) * whole.seq_k + j);
  };
  const auto sequence_of = [](const Problem& problem, std::int64_t b, std::int64_t head) {
    const SequenceSpan span = problem.sequence(b);
    const std::int64_t pattern = problem.mask.has_blocks() ? problem.mask.block_mask().pattern_of(b, head) : 0;
    return MaskSequence{span.queries, span.keys, span.query_row, span.key_row, pattern};
  };
  std::vector<Found> found(at(whole.batch, 0, 0, 0));
  for (int query_rank = 0; query_rank < ranks; ++query_rank) {
    for (int key_rank = 0; key_rank < ranks; ++key_rank) {
      for (const SubProblem& part : internal::sub_problems(whole, query_layout, query_rank, key_layout, key_rank)) {
        const Problem& problem = part.problem;
        ASSERT_NO_THROW(validate(problem)) << problem.describe();
        std::int64_t pairs = 0;
        for (std::int64_t line = 0; line < problem.batch * problem.heads_q; ++line) {
          const std::int64_t b = line / problem.heads_q;
          const std::int64_t head = line % problem.heads_q;
          const MaskSequence sequence = sequence_of(problem, b, head);
          const std::int64_t diagonal = problem.mask.alignment().resolve(sequence.queries, sequence.keys);
          for (std::int64_t i = 0; i < sequence.queries; ++i) {
            for (std::int64_t j = 0; j < sequence.keys; ++j) {
              if (!test::attends(problem.mask, sequence, i, j)) continue;
              ++pairs;
              Found& pair = found[at(part.batch_begin + b, head, part.query_positions.position(i),
                                     part.key_positions.position(j))];
              ++pair.times;
              pair.distance = static_cast<double>(part.slope_factor) * std::abs(static_cast<double>(i + diagonal - j)) +
                              static_cast<double>(part.distance_shift);
              pair.kept = dropout_keeps(problem.dropout, b, head, i, j);
            }
          }
        }
        EXPECT_GT(pairs, 0) << "an empty part: " << problem.describe();
      }
    }
  }
  for (std::int64_t line = 0; line < whole.batch * whole.heads_q; ++line) {
    const std::int64_t b = line / whole.heads_q;
    const std::int64_t head = line % whole.heads_q;
    const MaskSequence sequence = sequence_of(whole, b, head);
    const std::int64_t diagonal = whole.mask.alignment().resolve(sequence.queries, sequence.keys);
    for (std::int64_t i = 0; i < whole.seq_q; ++i) {
      for (std::int64_t j = 0; j < whole.seq_k; ++j) {
        const bool attends = j < sequence.keys && test::attends(whole.mask, sequence, i, j);
        const Found& pair = found[at(b, head, i, j)];
        ASSERT_EQ(pair.times, attends ? 1 : 0) << "sequence " << b << " query " << i << " key " << j;
        if (!attends) continue;
        ASSERT_EQ(pair.kept, dropout_keeps(whole.dropout, b, head, i, j)) << b << " " << i << " " << j;
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
      for (const int ranks : {1, 2, 3, 5, 19}) {
        SCOPED_TRACE(row.name + (alibi ? " alibi" : "") + " over " + std::to_string(ranks) + " ranks");
        expect_the_whole(row.problem, GetParam(), ranks);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, SubProblems, ::testing::Values(Kind::contiguous, Kind::zigzag, Kind::striped),
                         [](const auto& row) { return std::string(layout_name(row.param)); });

// Aligned blocks stay whole blocks, in every layout: no bits, and as many pairs in each as fit.
TEST(SubProblems, AlignedBlocksStayBlocks) {
  Problem problem;
  problem.seq_q = problem.seq_k = 512;
  problem.dim_qk = problem.dim_v = 4;
  problem.mask = Mask::blocks(block_patterns::random({512, 512, 64, 64}, 0.4, 3));
  for (const Kind kind : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
    const SequenceLayout layout(kind, 512, 4);
    const std::int64_t block = kind == Kind::striped ? 16 : 64;
    for (int key_rank = 0; key_rank < 4; ++key_rank) {
      for (const SubProblem& part : internal::sub_problems(problem, layout, 1, layout, key_rank)) {
        if (!part.problem.mask.has_blocks()) continue;
        const BlockMask& blocks = part.problem.mask.block_mask();
        EXPECT_EQ(blocks.grid().block_q, block) << layout_name(kind);
        EXPECT_EQ(blocks.grid().block_k, block) << layout_name(kind);
        for (std::int64_t row = 0; row < blocks.grid().rows(); ++row) {
          for (const TileVisit& visit : blocks.row(0, row)) EXPECT_EQ(visit.kind, TileKind::full);
        }
      }
    }
  }
}

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
  Problem doubles;
  doubles.dtype = DType::float64;
  test::expect_error(ErrorCode::unsupported, {"dtype", "float64"}, [&] { internal::require_distributable(doubles); });
  Problem far;
  far.mask = Mask::causal(Alignment::at(std::int64_t{1} << 50));
  test::expect_invalid({"diagonal", "2^40"}, [&] { internal::require_distributable(far); });
}

}  // namespace
}  // namespace tessera
