// A mask and its TileSchedule agree element by element, for random masks, lengths and tile sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "support/mask_oracle.h"
#include "tessera/mask.h"

namespace tessera {
namespace {

using test::attends;
using test::tile_kind;

struct Draw {
  Mask mask;
  MaskSequence sequence;
  std::int64_t tile_q = 1;
  std::int64_t tile_k = 1;
};

// Draws cover every pair of lengths from 0, every alignment and sides from 0 to beyond the lengths.
class Drawer {
 public:
  explicit Drawer(unsigned seed) : random_(seed) {}

  Draw next() {
    Draw draw;
    draw.sequence = {pick(0, 24), pick(0, 24), pick(0, 5), pick(0, 5), 0};
    draw.tile_q = pick(1, 9);
    draw.tile_k = pick(1, 9);
    draw.mask = band();
    if (pick(0, 2) == 0) draw.mask = draw.mask & Mask::segments(segments(draw.sequence));
    return draw;
  }

  // Longer sequences under a block mask of several heads, with tiles that divide its blocks or do not.
  Draw next_with_blocks() {
    Draw draw;
    const BlockGrid grid{pick(0, 90), pick(0, 90), 16 * pick(1, 3), 16 * pick(1, 3)};
    draw.sequence = {pick(0, grid.queries), pick(0, grid.keys), 0, 0, pick(0, 2)};
    draw.tile_q = pick(0, 1) == 0 ? grid.block_q : pick(5, 40);
    draw.tile_k = pick(0, 1) == 0 ? grid.block_k : pick(5, 40);
    std::vector<BlockMask> heads;
    for (int head = 0; head < 3; ++head) heads.push_back(blocks(grid));
    draw.mask = band() & Mask::blocks(BlockMask::over_heads(heads));
    if (pick(0, 3) == 0) draw.mask = draw.mask & Mask::segments(segments(draw.sequence));
    return draw;
  }

  BlockMask blocks(const BlockGrid& grid) {
    if (pick(0, 1) == 0) {
      return block_patterns::random(grid, static_cast<double>(pick(0, 4)) / 4, static_cast<std::uint64_t>(pick(0, 99)));
    }
    std::vector<std::uint8_t> attends(static_cast<std::size_t>(grid.queries * grid.keys));
    const std::int64_t rare = pick(1, 3);  // runs of ones, so that some blocks are full
    std::uint8_t value = 1;
    for (std::uint8_t& pair : attends) {
      if (pick(0, 20 * rare) == 0) value = static_cast<std::uint8_t>(1 - value);
      pair = value;
    }
    return BlockMask::from_dense(grid, attends);
  }

 private:
  std::int64_t pick(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }

  Alignment alignment() {
    const std::int64_t kind = pick(0, 2);
    return kind == 0 ? Alignment::bottom_right() : kind == 1 ? Alignment::top_left() : Alignment::at(pick(-30, 30));
  }

  std::int64_t side() { return pick(0, 3) == 0 ? Mask::kUnlimited : pick(0, 3) == 0 ? 0 : pick(0, 28); }

  Mask band() {
    const std::int64_t kind = pick(0, 3);
    if (kind == 0) return Mask().with_alignment(alignment());
    if (kind == 1) return Mask::causal(alignment());
    return Mask::window(side(), side(), alignment());
  }

  // Numbers that do not decrease, with gaps, so that some documents have queries or keys alone.
  std::vector<std::int32_t> ids(std::int64_t before, std::int64_t count) {
    std::vector<std::int32_t> result(static_cast<std::size_t>(before), 3);
    std::int32_t id = static_cast<std::int32_t>(pick(-2, 0));
    for (std::int64_t n = 0; n < count; ++n) {
      if (pick(0, 3) == 0) id += static_cast<std::int32_t>(pick(1, 2));
      result.push_back(id);
    }
    return result;
  }

  Segments segments(const MaskSequence& sequence) {
    return {ids(sequence.query_offset, sequence.queries), ids(sequence.key_offset, sequence.keys)};
  }

  std::mt19937 random_;
};

Range tile(std::int64_t index, std::int64_t size, std::int64_t length) {
  return {index * size, std::min(length, (index + 1) * size)};
}

std::string label(const Draw& draw) {
  return draw.mask.describe() + " queries " + std::to_string(draw.sequence.queries) + " keys " +
         std::to_string(draw.sequence.keys) + " diagonal " +
         std::to_string(draw.mask.alignment().resolve(draw.sequence.queries, draw.sequence.keys)) + " tiles " +
         std::to_string(draw.tile_q) + "x" + std::to_string(draw.tile_k);
}

void check_elements(const Draw& draw, const TileSchedule& schedule) {
  for (std::int64_t i = 0; i < draw.sequence.queries; ++i) {
    Range all;
    Range run = schedule.next_keys(i, {0, draw.sequence.keys});
    for (std::int64_t j = 0; j < draw.sequence.keys; ++j) {
      const bool attending = attends(draw.mask, draw.sequence, i, j);
      if (!run.empty() && j == run.end) {
        ASSERT_FALSE(attending) << "a run ends early: query " << i << " key " << j;
        run = schedule.next_keys(i, {j, draw.sequence.keys});
      }
      ASSERT_EQ(run.begin <= j && j < run.end, attending) << "query " << i << " key " << j;
      ASSERT_EQ(schedule.next_keys(i, {j, j + 1}).empty(), !attending) << "query " << i << " key " << j;
      if (attending) all = {all.empty() ? j : all.begin, j + 1};
    }
    ASSERT_EQ(schedule.keys_of(i), all) << "query " << i;
  }
}

void check_tiles(const Draw& draw, const TileSchedule& schedule) {
  TileSchedule::Counts counts;
  for (std::int64_t qt = 0; qt < schedule.query_tiles(); ++qt) {
    std::vector<TileVisit> expected;
    for (std::int64_t kt = 0; kt < schedule.key_tiles(); ++kt) {
      const Range queries = tile(qt, draw.tile_q, draw.sequence.queries);
      const Range keys = tile(kt, draw.tile_k, draw.sequence.keys);
      const std::optional<TileKind> kind = tile_kind(draw.mask, draw.sequence, queries, keys);
      ASSERT_EQ(schedule.visit(qt, kt), kind) << "tile " << qt << ", " << kt;
      if (kind) expected.push_back({kt, *kind});
      (kind ? *kind == TileKind::full ? counts.full : counts.partial : counts.skipped) += 1;
    }
    ASSERT_EQ(schedule.row(qt), expected) << "query tile " << qt;
    const Range span = schedule.row_span(qt);
    ASSERT_EQ(span.empty(), expected.empty()) << "query tile " << qt;
    if (!expected.empty()) {
      ASSERT_EQ(span, (Range{expected.front().index, expected.back().index + 1}));
    }
  }
  for (std::int64_t i = 0; i < draw.sequence.queries; ++i) {
    for (std::int64_t j = 0; j < draw.sequence.keys; ++j) counts.pairs += attends(draw.mask, draw.sequence, i, j);
  }
  const TileSchedule::Counts actual = schedule.count();
  EXPECT_EQ(actual.full, counts.full);
  EXPECT_EQ(actual.partial, counts.partial);
  EXPECT_EQ(actual.skipped, counts.skipped);
  EXPECT_EQ(actual.pairs, counts.pairs);
}

void check_transpose(const Draw& draw, const TileSchedule& schedule) {
  for (std::int64_t kt = 0; kt < schedule.key_tiles(); ++kt) {
    std::vector<TileVisit> expected;
    for (std::int64_t qt = 0; qt < schedule.query_tiles(); ++qt) {
      if (const std::optional<TileKind> kind = schedule.visit(qt, kt)) {
        expected.push_back({qt, *kind});
      }
    }
    ASSERT_EQ(schedule.column(kt), expected) << "key tile " << kt;
    const Range span = schedule.column_span(kt);
    ASSERT_EQ(span.empty(), expected.empty()) << "key tile " << kt;
    if (!expected.empty()) {
      ASSERT_EQ(span, (Range{expected.front().index, expected.back().index + 1}));
    }
    const Range keys = tile(kt, draw.tile_k, draw.sequence.keys);
    Range queries{draw.sequence.queries, 0};
    for (std::int64_t i = 0; i < draw.sequence.queries; ++i) {
      for (std::int64_t j = keys.begin; j < keys.end; ++j) {
        if (!attends(draw.mask, draw.sequence, i, j)) continue;
        queries = {std::min(queries.begin, i), i + 1};
      }
    }
    const Range actual = schedule.queries_of(keys);
    ASSERT_EQ(actual.empty(), queries.empty()) << "keys of tile " << kt;
    if (!queries.empty()) {
      ASSERT_EQ(actual, queries) << "keys of tile " << kt;
    }
  }
}

void check(const Draw& draw) {
  SCOPED_TRACE(label(draw));
  const TileSchedule schedule(draw.mask, draw.sequence, draw.tile_q, draw.tile_k);
  check_elements(draw, schedule);
  check_tiles(draw, schedule);
  check_transpose(draw, schedule);
}

TEST(MaskLowering, AgreesWithTheElementDefinition) {
  Drawer drawer(20240517);
  for (int n = 0; n < 3000 && !testing::Test::HasFailure(); ++n) check(drawer.next());
}

TEST(MaskLowering, OfBlockMasksAgreesWithTheElementDefinition) {
  Drawer drawer(20261123);
  for (int n = 0; n < 400 && !testing::Test::HasFailure(); ++n) check(drawer.next_with_blocks());
}

// What the backward pass relies on: no tile that attends is lost, whatever the two tile sizes are.
TEST(MaskLowering, PairCountDoesNotDependOnTheTiles) {
  Drawer drawer(7);
  for (int n = 0; n < 300; ++n) {
    const Draw draw = drawer.next();
    SCOPED_TRACE(label(draw));
    const std::int64_t pairs = TileSchedule(draw.mask, draw.sequence, 1, 1).count().pairs;
    for (const std::int64_t size : {2, 5, 16, 1000}) {
      ASSERT_EQ(TileSchedule(draw.mask, draw.sequence, size, 7).count().pairs, pairs);
      ASSERT_EQ(TileSchedule(draw.mask, draw.sequence, 3, size).count().pairs, pairs);
    }
  }
}

}  // namespace
}  // namespace tessera
