#include "tessera/block_mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "support/expect_error.h"
#include "tessera/mask.h"
#include "tessera/problem.h"

namespace tessera {
namespace {

using test::expect_invalid;

constexpr BlockGrid kSquare{64, 64, 16, 16};

std::vector<std::int64_t> columns_of(const BlockMask& mask, std::int64_t row, std::int64_t pattern = 0) {
  std::vector<std::int64_t> columns;
  for (const TileVisit& block : mask.row(pattern, row)) columns.push_back(block.index);
  return columns;
}

using Columns = std::vector<std::int64_t>;

TEST(BlockMask, FromFunctionKeepsWhatItSays) {
  const BlockMask mask =
      BlockMask::from_function(kSquare, [](std::int64_t row, std::int64_t column) { return column == 3 - row; });
  EXPECT_EQ(mask.draw(), "...#\n..#.\n.#..\n#...\n");
  EXPECT_EQ(mask.kept_blocks(), 4);
  EXPECT_DOUBLE_EQ(mask.density(), 0.25);
}

TEST(BlockMask, FromCsr) {
  const std::vector<std::int64_t> offsets{0, 2, 2, 3, 6};
  const std::vector<std::int64_t> columns{1, 3, 0, 0, 1, 2};
  const BlockMask mask = BlockMask::from_csr(kSquare, offsets, columns);
  EXPECT_EQ(mask.draw(), ".#.#\n....\n#...\n###.\n");
}

TEST(BlockMask, FromCsrNamesTheRowThatIsWrong) {
  const auto make = [](std::vector<std::int64_t> offsets, std::vector<std::int64_t> columns) {
    return [=] { BlockMask::from_csr(kSquare, offsets, columns); };
  };
  expect_invalid({"block row 1", "1", "2 to 3"}, make({0, 1, 3, 3, 3}, {0, 1, 1}));
  expect_invalid({"block row 1", "0", "2 to 3"}, make({0, 1, 3, 3, 3}, {0, 1, 0}));
  expect_invalid({"block row 3", "4", "0 to 3"}, make({0, 0, 0, 0, 1}, {4}));
  expect_invalid({"block row 0", "-1", "0 to 3"}, make({0, 1, 1, 1, 1}, {-1}));
  expect_invalid({"offsets[2]", "0", "1 to 2"}, make({0, 1, 0, 2, 2}, {1, 2}));
  expect_invalid({"offsets", "4 numbers", "5"}, make({0, 0, 0, 0}, {}));
  expect_invalid({"offsets", "0 to 1", "0 to the number of columns, 2"}, make({0, 0, 0, 0, 1}, {1, 2}));
}

TEST(BlockMask, GridNamesTheFieldThatIsWrong) {
  const auto make = [](BlockGrid grid) { return [grid] { block_patterns::local(grid, 1); }; };
  expect_invalid({"block_q", "17", "multiples of 16"}, make({64, 64, 17, 16}));
  expect_invalid({"block_k", "0", "multiples of 16"}, make({64, 64, 16, 0}));
  expect_invalid({"block_k", "8208", "8192"}, make({64, 64, 16, 8208}));
  expect_invalid({"queries", "-1"}, make({-1, 64, 16, 16}));
  expect_invalid({"keys", "-5"}, make({64, -5, 16, 16}));
  constexpr std::int64_t kLong = std::int64_t{1} << 24;
  expect_invalid({"grid", "1048576 x 1048576 blocks", "2^32", "from_csr"}, make({kLong, kLong, 16, 16}));
}

TEST(BlockMask, FromDenseFindsFullAndPartialBlocks) {
  const BlockGrid grid{20, 40, 16, 16};  // blocks cut short at both ends
  std::vector<std::uint8_t> attends(20 * 40, 0);
  for (std::size_t i = 0; i < 16; ++i) std::fill_n(attends.begin() + static_cast<std::ptrdiff_t>(i * 40), 16, 1);
  for (std::size_t i = 16; i < 20; ++i) std::fill_n(attends.begin() + static_cast<std::ptrdiff_t>(i * 40 + 32), 8, 1);
  attends[5 * 40 + 20] = 7;
  const BlockMask mask = BlockMask::from_dense(grid, attends);
  EXPECT_EQ(mask.draw(), "#+.\n..#\n");
  for (std::int64_t i = 0; i < 20; ++i) {
    for (std::int64_t j = 0; j < 40; ++j) {
      EXPECT_EQ(mask.attends(0, i, j), attends[static_cast<std::size_t>(i * 40 + j)] != 0) << i << ", " << j;
    }
  }
  EXPECT_EQ(mask.next_keys(0, 5, {0, 40}), (Range{0, 16}));
  EXPECT_EQ(mask.next_keys(0, 5, {16, 40}), (Range{20, 21}));
  EXPECT_EQ(mask.next_keys(0, 5, {21, 40}), Range{});
  EXPECT_EQ(mask.next_keys(0, 17, {35, 39}), (Range{35, 39}));
  expect_invalid({"attends", "3 values", "800"}, [&] { BlockMask::from_dense(grid, std::vector<std::uint8_t>(3)); });
}

// Runs join across blocks, full and partial ones.
TEST(BlockMask, RunsCrossBlocks) {
  const BlockGrid grid{16, 64, 16, 16};
  std::vector<std::uint8_t> attends(16 * 64, 0);
  std::fill(attends.begin() + 10, attends.begin() + 50, 1);
  const BlockMask mask = BlockMask::from_dense(grid, attends);
  EXPECT_EQ(mask.next_keys(0, 0, {0, 64}), (Range{10, 50}));
  EXPECT_EQ(mask.next_keys(0, 0, {12, 33}), (Range{12, 33}));
  EXPECT_EQ(mask.next_keys(0, 1, {0, 64}), Range{});
}

TEST(BlockMask, TransposeHoldsTheSameBlocks) {
  const BlockMask mask = block_patterns::random({200, 120, 16, 32}, 0.4, 3);
  for (std::int64_t column = 0; column < mask.grid().columns(); ++column) {
    Columns expected;
    for (std::int64_t row = 0; row < mask.grid().rows(); ++row) {
      const Columns kept = columns_of(mask, row);
      if (std::find(kept.begin(), kept.end(), column) != kept.end()) expected.push_back(row);
    }
    Columns actual;
    for (const TileVisit& block : mask.column(0, column)) actual.push_back(block.index);
    EXPECT_EQ(actual, expected) << "column " << column;
  }
}

TEST(BlockMask, ThreadsShareOneTranspose) {
  const BlockMask mask = block_patterns::random({1024, 1024, 16, 16}, 0.3, 5);
  std::vector<const TileVisit*> first(4);
  std::vector<std::thread> threads;
  for (const TileVisit*& blocks : first) {
    threads.emplace_back([&] { blocks = mask.column(0, 0).data(); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(first, std::vector<const TileVisit*>(first.size(), mask.column(0, 0).data()));
}

TEST(BlockMask, UnionAndIntersectionAgreePairByPair) {
  const BlockGrid grid{50, 70, 16, 32};
  const auto dense = [&](unsigned step) {
    std::vector<std::uint8_t> attends(50 * 70);
    for (std::size_t n = 0; n < attends.size(); ++n) attends[n] = n / 16 % step == 0 ? 1 : 0;
    return BlockMask::from_dense(grid, attends);
  };
  const BlockMask masks[] = {block_patterns::random(grid, 0.5, 1),
                             dense(2),
                             dense(3),
                             block_patterns::local(grid, 0),
                             block_patterns::random(grid, 0.0, 0),
                             block_patterns::random(grid, 1.0, 0)};
  for (const BlockMask& a : masks) {
    for (const BlockMask& b : masks) {
      const BlockMask both = a & b;
      const BlockMask either = a | b;
      for (std::int64_t i = 0; i < grid.queries; ++i) {
        for (std::int64_t j = 0; j < grid.keys; ++j) {
          ASSERT_EQ(both.attends(0, i, j), a.attends(0, i, j) && b.attends(0, i, j)) << i << ", " << j;
          ASSERT_EQ(either.attends(0, i, j), a.attends(0, i, j) || b.attends(0, i, j)) << i << ", " << j;
        }
      }
      EXPECT_EQ(both, b & a);
      EXPECT_EQ(either, b | a);
    }
  }
  EXPECT_EQ(dense(2) | block_patterns::random(grid, 1.0, 0), block_patterns::random(grid, 1.0, 0));
  expect_invalid({"grid"}, [&] { block_patterns::local(grid, 0) & block_patterns::local(kSquare, 0); });
}

TEST(BlockMask, HeadsAndSequencesHaveTheirPatterns) {
  std::vector<BlockMask> heads;
  for (std::int64_t distance = 0; distance < 3; ++distance) heads.push_back(block_patterns::local(kSquare, distance));
  const BlockMask by_head = BlockMask::over_heads(heads);
  EXPECT_EQ(by_head.heads(), 3);
  EXPECT_EQ(by_head.batch(), 1);
  EXPECT_EQ(columns_of(by_head, 1, by_head.pattern_of(5, 2)), (Columns{0, 1, 2, 3}));
  const std::vector<BlockMask> sequences{by_head, by_head & block_patterns::local(kSquare, 0)};
  const BlockMask both = BlockMask::over_batch(sequences);
  EXPECT_EQ(both.patterns(), 6);
  EXPECT_EQ(columns_of(both, 1, both.pattern_of(1, 2)), (Columns{1}));
  EXPECT_EQ(columns_of(both, 1, both.pattern_of(0, 1)), (Columns{0, 1, 2}));
  expect_invalid({"heads"}, [&] { BlockMask::over_heads(sequences); });
  expect_invalid({"heads", "no block masks"}, [] { BlockMask::over_heads({}); });
  expect_invalid({"sequences"}, [&] { BlockMask::over_batch(std::vector<BlockMask>{by_head, heads[0]}); });
  expect_invalid({"heads", "3 and 2"},
                 [&] { by_head& BlockMask::over_heads(std::vector<BlockMask>{heads[0], heads[1]}); });
}

TEST(BlockMask, BytesComeBackEqual) {
  std::vector<std::uint8_t> attends(50 * 70);
  for (std::size_t n = 0; n < attends.size(); ++n) attends[n] = n % 7 < 3 ? 1 : 0;
  const BlockGrid grid{50, 70, 16, 32};
  const std::vector<BlockMask> heads{BlockMask::from_dense(grid, attends), block_patterns::random(grid, 0.5, 9)};
  const BlockMask mask = BlockMask::over_heads(heads);
  const std::vector<std::byte> bytes = mask.to_bytes();
  EXPECT_EQ(BlockMask::from_bytes(bytes), mask);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    expect_invalid({"block mask"}, [&] { BlockMask::from_bytes(std::span(bytes).first(size)); });
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  expect_invalid({"after the last pattern"}, [&] { BlockMask::from_bytes(longer); });
}

TEST(BlockPatterns, Butterfly) {
  const BlockMask mask = block_patterns::butterfly({128, 128, 16, 16});
  EXPECT_EQ(columns_of(mask, 0), (Columns{0, 1, 2, 4}));
  EXPECT_EQ(columns_of(mask, 5), (Columns{1, 4, 5, 7}));
  EXPECT_EQ(columns_of(block_patterns::butterfly({128, 128, 16, 16}, 1), 5), (Columns{4, 5}));
  EXPECT_EQ(block_patterns::butterfly({4096, 4096}).kept_blocks(), 32 * 6);
}

TEST(BlockPatterns, BandsAndGroups) {
  EXPECT_EQ(block_patterns::local({80, 80, 16, 16}, 1).draw(), "##...\n###..\n.###.\n..###\n...##\n");
  EXPECT_EQ(block_patterns::strided({96, 96, 16, 16}, 3).draw(), "####..\n#####.\n######\n######\n.#####\n..####\n");
  EXPECT_EQ(block_patterns::fixed({64, 64, 16, 16}, 2).draw(), "##.#\n##.#\n.###\n.###\n");
  EXPECT_EQ(block_patterns::sliding_window_global({80, 80, 16, 16}, 1).draw(), "#####\n###..\n####.\n#.###\n#..##\n");
  EXPECT_EQ(block_patterns::lower_triangular({48, 80, 16, 16}).draw(), "###..\n####.\n#####\n");
}

TEST(BlockPatterns, BigBirdAddsRandomBlocksToEachRow) {
  const BlockGrid grid{320, 320, 16, 16};
  const BlockMask regular = block_patterns::sliding_window_global(grid, 1, 1);
  const BlockMask mask = block_patterns::bigbird(grid, 1, 1, 3, 5);
  EXPECT_EQ(mask & regular, regular);
  for (std::int64_t row = 1; row < grid.rows(); ++row) {
    EXPECT_EQ(mask.row(0, row).size(), regular.row(0, row).size() + 3) << "row " << row;
  }
  EXPECT_EQ(mask, block_patterns::bigbird(grid, 1, 1, 3, 5));
  EXPECT_NE(mask, block_patterns::bigbird(grid, 1, 1, 3, 6));
}

TEST(BlockPatterns, RandomHasTheDensityThatWasAsked) {
  const BlockGrid grid{640, 320, 16, 16};
  for (const double density : {0.0, 0.125, 0.5, 1.0}) {
    EXPECT_EQ(block_patterns::random(grid, density, 4).kept_blocks(), static_cast<std::int64_t>(density * 800));
  }
  EXPECT_NE(block_patterns::random(grid, 0.5, 1), block_patterns::random(grid, 0.5, 2));
  expect_invalid({"density", "1.5", "0 to 1"}, [&] { block_patterns::random(grid, 1.5, 0); });
}

TEST(BlockMask, LargeGridsAreDrawnCoarser) {
  const std::string text = block_patterns::local({1600, 1600, 16, 16}, 0).draw(0, 50);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 50);
  EXPECT_EQ(text.substr(0, 3), "+..");
}

TEST(Mask, OfBlocksIntersects) {
  const BlockMask blocks = block_patterns::local(kSquare, 1);
  const Mask mask = Mask::causal() & Mask::blocks(blocks);
  EXPECT_TRUE(mask.has_band() && mask.has_blocks());
  EXPECT_EQ(mask.describe(), "causal & blocks 16x16, 62.5 % of 4 x 4 kept");
  EXPECT_EQ(mask & Mask::blocks(block_patterns::random(kSquare, 1.0, 0)), mask);
  EXPECT_NE(mask, Mask::causal());
}

TEST(Problem, RefusesABlockMaskOfAnotherShape) {
  Problem problem;
  problem.batch = 2;
  problem.heads_q = problem.heads_kv = 4;
  problem.seq_q = problem.seq_k = 64;
  problem.dim_qk = problem.dim_v = 8;
  const auto with = [&](const BlockMask& mask) {
    Problem changed = problem;
    changed.mask = Mask::blocks(mask);
    return [changed] { validate(changed); };
  };
  EXPECT_NO_THROW(with(block_patterns::local(kSquare, 1))());
  expect_invalid({"grid.queries", "65", "64"}, with(block_patterns::local({65, 64, 16, 16}, 1)));
  expect_invalid({"grid.keys", "63", "64"}, with(block_patterns::local({64, 63, 16, 16}, 1)));
  const std::vector<BlockMask> three(3, block_patterns::local(kSquare, 1));
  expect_invalid({"heads", "3", "4"}, with(BlockMask::over_heads(three)));
  expect_invalid({"batch", "3", "2"}, with(BlockMask::over_batch(three)));
}

}  // namespace
}  // namespace tessera
