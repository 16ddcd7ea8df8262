#include "tessera/mask.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/expect_error.h"
#include "support/mask_oracle.h"

namespace tessera {
namespace {

using test::expect_invalid;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Alignment, Resolve) {
  EXPECT_EQ(Alignment::bottom_right().resolve(3, 10), 7);
  EXPECT_EQ(Alignment::bottom_right().resolve(10, 3), -7);
  EXPECT_EQ(Alignment::top_left().resolve(3, 10), 0);
  EXPECT_EQ(Alignment::at(-4).resolve(3, 10), -4);
}

TEST(Mask, DefaultIsNone) {
  EXPECT_EQ(Mask(), Mask::none());
  EXPECT_FALSE(Mask().has_band());
  EXPECT_FALSE(Mask().has_segments());
}

TEST(Mask, CausalIsAWindowOpenToTheLeft) {
  EXPECT_EQ(Mask::causal(), Mask::window(Mask::kUnlimited, 0));
  EXPECT_EQ(Mask::causal(Alignment::top_left()), Mask::window(Mask::kUnlimited, 0, Alignment::top_left()));
  EXPECT_NE(Mask::causal(), Mask::causal(Alignment::top_left()));
}

TEST(Mask, WindowRefusesNegativeSides) {
  expect_invalid({"left", "-1"}, [] { Mask::window(-1, 0); });
  expect_invalid({"right", "-7"}, [] { Mask::window(0, -7); });
}

TEST(Mask, IntersectionTakesTheNarrowerSide) {
  EXPECT_EQ(Mask::causal() & Mask::window(8, 4), Mask::window(8, 0));
  EXPECT_EQ(Mask::window(3, 9) & Mask::window(5, 2), Mask::window(3, 2));
  EXPECT_EQ(Mask::none() & Mask::causal(Alignment::top_left()), Mask::causal(Alignment::top_left()));
  EXPECT_EQ(Mask::causal(Alignment::top_left()) & Mask::none(), Mask::causal(Alignment::top_left()));
}

TEST(Mask, IntersectionWithSegmentsKeepsBoth) {
  const Segments ids{{0, 0, 1}, {0, 1, 1}};
  const Mask both = Mask::causal() & Mask::segments(ids);
  EXPECT_TRUE(both.has_band());
  ASSERT_TRUE(both.has_segments());
  EXPECT_EQ(both.segment_ids(), ids);
  EXPECT_EQ(both & Mask::segments(ids), both);
  EXPECT_EQ(Mask::segments(ids) & Mask::causal(), both);
}

TEST(Mask, IntersectionRefusesWhatOneMaskCannotHold) {
  expect_invalid({"align"}, [] { Mask::causal() & Mask::window(4, 4, Alignment::top_left()); });
  expect_invalid({"segments"}, [] { Mask::segments({{0}, {0}}) & Mask::segments({{0}, {1}}); });
}

TEST(Mask, WithAlignment) {
  EXPECT_EQ(Mask::causal().with_alignment(Alignment::top_left()), Mask::causal(Alignment::top_left()));
  EXPECT_EQ(Mask().with_alignment(Alignment::at(5)).alignment(), Alignment::at(5));
}

TEST(Mask, Describe) {
  EXPECT_EQ(Mask().describe(), "none");
  EXPECT_TRUE(contains(Mask::causal().describe(), "causal"));
  EXPECT_TRUE(contains(Mask::causal(Alignment::top_left()).describe(), "top-left"));
  EXPECT_TRUE(contains(Mask::window(128, 0).describe(), "window(128, 0)"));
  const std::string both = (Mask::window(4, 2) & Mask::segments({{0}, {0}})).describe();
  EXPECT_TRUE(contains(both, "window(4, 2)") && contains(both, "segments")) << both;
}

TEST(TileSchedule, RefusesEmptyTiles) {
  expect_invalid({"tile_q", "0"}, [] { TileSchedule(Mask(), {4, 4, 0, 0}, 0, 1); });
  expect_invalid({"tile_k", "-3"}, [] { TileSchedule(Mask(), {4, 4, 0, 0}, 1, -3); });
}

TEST(TileSchedule, DenseHasFullTilesAlone) {
  const TileSchedule schedule(Mask(), {10, 7, 0, 0}, 4, 3);
  EXPECT_EQ(schedule.query_tiles(), 3);
  EXPECT_EQ(schedule.key_tiles(), 3);
  EXPECT_EQ(schedule.row(2), (std::vector<TileVisit>{{0, TileKind::full}, {1, TileKind::full}, {2, TileKind::full}}));
  const TileSchedule::Counts counts = schedule.count();
  EXPECT_EQ(counts.full, 9);
  EXPECT_EQ(counts.partial, 0);
  EXPECT_EQ(counts.skipped, 0);
  EXPECT_EQ(counts.pairs, 70);
}

TEST(TileSchedule, CausalByHand) {
  const TileSchedule schedule(Mask::causal(), {4, 6, 0, 0}, 2, 2);
  EXPECT_EQ(schedule.row(0), (std::vector<TileVisit>{{0, TileKind::full}, {1, TileKind::partial}}));
  EXPECT_EQ(schedule.row(1),
            (std::vector<TileVisit>{{0, TileKind::full}, {1, TileKind::full}, {2, TileKind::partial}}));
  EXPECT_EQ(schedule.column(2), (std::vector<TileVisit>{{1, TileKind::partial}}));
  EXPECT_EQ(schedule.visit(0, 2), std::nullopt);
  EXPECT_EQ(schedule.keys_of(0), (Range{0, 3}));
  EXPECT_EQ(schedule.queries_of({5, 6}), (Range{3, 4}));
  EXPECT_EQ(schedule.count().pairs, 3 + 4 + 5 + 6);
}

TEST(TileSchedule, MoreQueriesThanKeysLeavesTheFirstRowsEmpty) {
  const TileSchedule schedule(Mask::causal(), {6, 2, 0, 0}, 2, 2);
  EXPECT_TRUE(schedule.row(0).empty());
  EXPECT_TRUE(schedule.row(1).empty());
  EXPECT_EQ(schedule.keys_of(3), (Range{0, 0}));
  EXPECT_EQ(schedule.keys_of(4), (Range{0, 1}));
  EXPECT_EQ(schedule.count().skipped, 2);
}

TEST(TileSchedule, EmptySequences) {
  for (const auto& [queries, keys] : std::vector<std::pair<int, int>>{{0, 5}, {5, 0}, {0, 0}}) {
    const TileSchedule schedule(Mask::causal(), {queries, keys, 0, 0}, 4, 4);
    EXPECT_EQ(schedule.query_tiles(), (queries + 3) / 4);
    EXPECT_EQ(schedule.key_tiles(), (keys + 3) / 4);
    EXPECT_EQ(schedule.count().pairs, 0);
    EXPECT_EQ(schedule.count().full + schedule.count().partial, 0);
  }
}

// Sides and diagonals near the ends of int64 must not overflow.
TEST(TileSchedule, ExtremeBands) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t side : {most, most - 1, most / 2}) {
    const TileSchedule schedule(Mask::window(side, side), {5, 5, 0, 0}, 2, 2);
    EXPECT_EQ(schedule.count().pairs, 25) << side;
  }
  EXPECT_EQ(TileSchedule(Mask::causal(Alignment::at(most - 10)), {5, 5, 0, 0}, 2, 2).count().pairs, 25);
  EXPECT_EQ(TileSchedule(Mask::causal(Alignment::at(10 - most)), {5, 5, 0, 0}, 2, 2).count().pairs, 0);
}

// Bands are walked by arithmetic: a schedule of 2^40 tokens costs nothing to make and to ask.
TEST(TileSchedule, LongSequencesAreWalkedByArithmetic) {
  const std::int64_t length = std::int64_t{1} << 40;
  const TileSchedule schedule(Mask::window(100, 0), {length, length, 0, 0}, 128, 128);
  EXPECT_EQ(schedule.query_tiles(), length / 128);
  EXPECT_EQ(schedule.keys_of(length - 1), (Range{length - 101, length}));
  EXPECT_EQ(schedule.row(length / 128 - 1).size(), 2U);
  EXPECT_EQ(schedule.queries_of({length - 1, length}), (Range{length - 1, length}));
}

}  // namespace
}  // namespace tessera
