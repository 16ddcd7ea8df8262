// The lists that GPU kernels walk agree with the masks element by element, for random problems and sizes of tiles.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "mask/schedule_lists.h"
#include "support/mask_oracle.h"
#include "tessera/problem.h"

namespace tessera {
namespace {

using internal::BitOrder;
using internal::list_schedules;
using internal::ScheduleLists;

struct Draw {
  Problem problem;
  std::int64_t tile_q = 64;
  std::int64_t tile_k = 64;
};

class Drawer {
 public:
  explicit Drawer(unsigned seed) : random_(seed) {}

  Draw next() {
    Draw draw;
    Problem& problem = draw.problem;
    problem.dim_qk = problem.dim_v = 8;
    problem.heads_q = problem.heads_kv = pick(1, 3);
    problem.batch = pick(1, 3);
    if (pick(0, 2) == 0) {
      set_ragged(problem, lengths(problem.batch), lengths(problem.batch));
    } else {
      problem.seq_q = pick(0, 200);
      problem.seq_k = pick(0, 200);
    }
    if (!problem.ragged() && pick(0, 2) == 0) {
      for (std::int64_t b = 0; b < problem.batch; ++b) problem.key_lengths.push_back(pick(0, problem.seq_k));
    }
    draw.tile_q = 32 * pick(1, 3);
    draw.tile_k = 32 * pick(1, 3);
    problem.mask = band();
    const std::int64_t kind = pick(0, 3);
    if (kind != 1) problem.mask = problem.mask & Mask::blocks(blocks(problem));
    if (kind <= 1) problem.mask = problem.mask & Mask::segments(segments(problem));
    return draw;
  }

 private:
  std::int64_t pick(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }

  std::vector<std::int64_t> lengths(std::int64_t count) {
    std::vector<std::int64_t> sums{0};
    for (std::int64_t n = 0; n < count; ++n) sums.push_back(sums.back() + (pick(0, 4) == 0 ? 0 : pick(1, 150)));
    return sums;
  }

  Mask band() {
    const std::int64_t kind = pick(0, 3);
    return kind == 0 ? Mask::causal() : kind == 1 ? Mask::window(pick(0, 90), pick(0, 90)) : Mask();
  }

  BlockMask pattern(const BlockGrid& grid) {
    if (pick(0, 2) > 0) {
      return block_patterns::random(grid, static_cast<double>(pick(0, 4)) / 4, static_cast<std::uint64_t>(pick(0, 99)));
    }
    std::vector<std::uint8_t> attends(static_cast<std::size_t>(grid.queries * grid.keys));
    std::uint8_t value = 1;
    for (std::uint8_t& pair : attends) {
      if (pick(0, 99) == 0) value = static_cast<std::uint8_t>(1 - value);
      pair = value;
    }
    return BlockMask::from_dense(grid, attends);
  }

  BlockMask blocks(const Problem& problem) {
    const BlockGrid grid{problem.seq_q, problem.seq_k, 16 * pick(1, 5), 16 * pick(1, 5)};
    const std::int64_t heads = pick(0, 1) == 0 ? 1 : problem.heads_q;
    const std::int64_t sequences = pick(0, 1) == 0 ? 1 : problem.batch;
    std::vector<BlockMask> of_batch;
    for (std::int64_t b = 0; b < sequences; ++b) {
      std::vector<BlockMask> of_heads;
      for (std::int64_t h = 0; h < heads; ++h) of_heads.push_back(pattern(grid));
      of_batch.push_back(BlockMask::over_heads(of_heads));
    }
    return BlockMask::over_batch(of_batch);
  }

  // Ascending in every sequence, where `start` says that one starts.
  std::vector<std::int32_t> documents(const Problem& problem, bool of_queries) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(of_queries ? problem.total_q() : problem.total_k()));
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const SequenceSpan span = problem.sequence(b);
      const std::int64_t first = of_queries ? span.query_row : span.key_row;
      const std::int64_t stored = problem.ragged() ? span.keys : problem.seq_k;
      std::int32_t id = static_cast<std::int32_t>(pick(-1, 1));
      for (std::int64_t n = 0; n < (of_queries ? span.queries : stored); ++n) {
        if (pick(0, 30) == 0) id += static_cast<std::int32_t>(pick(1, 2));
        ids[static_cast<std::size_t>(first + n)] = id;
      }
    }
    return ids;
  }

  Segments segments(const Problem& problem) { return {documents(problem, true), documents(problem, false)}; }

  std::mt19937 random_;
};

class Checker {
 public:
  Checker(const Draw& draw, BitOrder order)
      : draw_(draw), order_(order), lists_(list_schedules(draw.problem, draw.tile_q, draw.tile_k, order)) {}

  void check() {
    for (std::int64_t b = 0; b < draw_.problem.batch; ++b) {
      for (std::int64_t h = 0; h < draw_.problem.heads_q; ++h) check_pattern(b, h);
    }
    check_masks_differ();
  }

 private:
  void check_pattern(std::int64_t b, std::int64_t head) {
    const Problem& problem = draw_.problem;
    const SequenceSpan span = problem.sequence(b);
    const std::int64_t pattern_of_blocks =
        problem.mask.has_blocks() ? problem.mask.block_mask().pattern_of(b, head) : 0;
    const MaskSequence sequence{span.queries, span.keys, span.query_row, span.key_row, pattern_of_blocks};
    const std::int64_t pattern = b * lists_.sequence_step + head * lists_.head_step;
    for (std::int64_t qt = 0; qt < lists_.row_tiles; ++qt) {
      for (std::int64_t kt = 0; kt < lists_.column_tiles; ++kt) {
        const auto* by_row = find(lists_.rows, pattern * lists_.row_tiles + qt, kt);
        const auto* by_column = find(lists_.columns, pattern * lists_.column_tiles + kt, qt);
        ASSERT_EQ(by_row == nullptr, by_column == nullptr) << "tile " << qt << ", " << kt;
        const Range queries{qt * draw_.tile_q, std::min((qt + 1) * draw_.tile_q, span.queries)};
        const Range keys{kt * draw_.tile_k, std::min((kt + 1) * draw_.tile_k, span.keys)};
        ASSERT_EQ(by_row != nullptr, test::tile_kind(problem.mask, sequence, queries, keys).has_value());
        if (by_row != nullptr) {
          ASSERT_EQ(by_row->bits, by_column->bits);
          check_tile(sequence, queries, kt, *by_row);
        }
      }
    }
  }

  void check_tile(const MaskSequence& sequence, const Range& queries, std::int64_t kt,
                  const ScheduleLists::Visit& visit) {
    bool all = true;
    for (std::int64_t i = queries.begin; i < queries.end; ++i) {
      for (std::int64_t k = 0; k < draw_.tile_k; ++k) {
        const std::int64_t j = kt * draw_.tile_k + k;
        const bool expected = j < sequence.keys && test::attends(draw_.problem.mask, sequence, i, j);
        all = all && expected;
        ASSERT_EQ(attends(visit.bits, i - queries.begin, k), expected) << "query " << i << " key " << j;
      }
    }
    ASSERT_EQ(visit.bits == ScheduleLists::kAllAttend, all) << "only tiles without hidden pairs go without bits";
  }

  bool attends(std::int32_t bits, std::int64_t query, std::int64_t key) const {
    if (bits == ScheduleLists::kAllAttend) return true;
    const std::int64_t first = bits * draw_.tile_q * draw_.tile_k;
    const std::int64_t bit =
        first + (order_ == BitOrder::by_query ? query * draw_.tile_k + key : key * draw_.tile_q + query);
    return (lists_.bits.at(static_cast<std::size_t>(bit / 32)) >> (bit % 32) & 1U) != 0;
  }

  const ScheduleLists::Visit* find(const ScheduleLists::Side& side, std::int64_t line, std::int64_t tile) const {
    const std::int32_t begin = side.begin.at(static_cast<std::size_t>(line));
    const std::int32_t end = side.begin.at(static_cast<std::size_t>(line) + 1);
    const ScheduleLists::Visit* found = nullptr;
    for (std::int32_t n = begin; n < end; ++n) {
      const ScheduleLists::Visit& visit = side.visits.at(static_cast<std::size_t>(n));
      if (n > begin) {
        EXPECT_GT(visit.tile, side.visits.at(static_cast<std::size_t>(n) - 1).tile);
      }
      if (visit.tile == tile) found = &visit;
    }
    return found;
  }

  void check_masks_differ() {
    const std::int64_t words = draw_.tile_q * draw_.tile_k / 32;
    std::set<std::vector<std::uint32_t>> masks;
    for (auto word = lists_.bits.begin(); word != lists_.bits.end(); word += words) {
      EXPECT_TRUE(masks.emplace(word, word + words).second) << "a mask is there twice";
    }
  }

  const Draw& draw_;
  const BitOrder order_;
  const ScheduleLists lists_;
};

TEST(ScheduleLists, AgreeWithTheElementDefinition) {
  Drawer drawer(20261125);
  for (int n = 0; n < 120 && !testing::Test::HasFailure(); ++n) {
    const Draw draw = drawer.next();
    SCOPED_TRACE(draw.problem.describe() + " tiles " + std::to_string(draw.tile_q) + "x" + std::to_string(draw.tile_k));
    Checker(draw, n % 2 == 0 ? BitOrder::by_query : BitOrder::by_key).check();
  }
}

Problem long_problem(std::int64_t tokens, const BlockMask& blocks) {
  Problem problem;
  problem.dim_qk = problem.dim_v = 64;
  problem.seq_q = problem.seq_k = tokens;
  problem.heads_q = problem.heads_kv = 16;
  problem.mask = Mask::blocks(blocks);
  return problem;
}

// A causal mask has one kind of partial tile on its diagonal, whatever the length.
TEST(ScheduleLists, EqualBitsAreKeptOnce) {
  const BlockGrid grid{4096, 4096, 128, 128};
  Problem problem = long_problem(4096, block_patterns::lower_triangular(grid));
  problem.mask = problem.mask & Mask::causal();
  const ScheduleLists lists = list_schedules(problem, 128, 128);
  EXPECT_EQ(lists.partial_visits, 32);
  EXPECT_EQ(lists.bits.size(), 128U * 128U / 32U);
}

TEST(ScheduleLists, FullBlocksOfALongSequenceAreListedFast) {
  const BlockGrid grid{65536, 65536, 128, 128};
  const Problem problem = long_problem(65536, block_patterns::random(grid, 0.5, 1));
  const auto start = std::chrono::steady_clock::now();
  const ScheduleLists lists = list_schedules(problem, 128, 128);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(lists.rows.visits.size(), 131072U);
  EXPECT_EQ(lists.partial_visits, 0);
  RecordProperty("seconds", std::to_string(time.count()));
  EXPECT_LT(time.count(), 5.0);  // 0.05 s on an idle core; tests are built with little optimisation and share machines
}

}  // namespace
}  // namespace tessera
