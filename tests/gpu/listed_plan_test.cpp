// How tiles of keys are dealt to blocks, and the turns of their terms of dQ: needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "core/fail.h"
#include "cuda/listed_order.h"
#include "cuda/sm90/bwd/listed_plan.h"
#include "tessera/problem.h"

namespace tessera {
namespace {

using internal::list_schedules;
using internal::ListedPlay;
using internal::ListedSide;
using internal::ListedTile;
using internal::ScheduleLists;
using internal::sequence_table;
using internal::SequenceTable;

constexpr std::int64_t kTileQ = 64;
constexpr std::int64_t kTileK = 128;

struct Planned {
  explicit Planned(const Problem& problem)
      : problem(problem),
        lists(list_schedules(problem, kTileQ, kTileK, internal::BitOrder::by_key)),
        alike(!problem.ragged() && problem.key_lengths.empty()) {
    if (!alike) table = sequence_table(problem, false, kTileK, kTileQ);
    tiles_of_head = alike ? internal::ceil_div(problem.seq_k, kTileK) : table.tiles;
    line_tiles = alike ? internal::ceil_div(problem.seq_q, kTileQ) : table.line / kTileQ;
    tiles = order_listed_tiles(problem, lists, ListedSide::keys, table, {kTileK, tiles_of_head, 512, 1 << 20});
  }
  ListedPlay play(std::int64_t blocks) const {
    return play_listed_backward(problem, lists, tiles, table, line_tiles, kTileQ, blocks);
  }
  std::int64_t query_tiles() const {
    std::int64_t tiles = 0;
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      tiles += internal::ceil_div(problem.sequence(b).queries, kTileQ) * problem.heads_q;
    }
    return tiles;
  }
  // Of a term: its tile of queries among all heads and sequences.
  std::int64_t query_tile(const ListedTile& tile, const sm90::ListedTerm& term) const {
    const std::int64_t head = tile.head * problem.group_size() + term.member;
    const std::int64_t line = alike ? tile.sequence * problem.heads_q + head : head;
    const std::int64_t first = alike ? 0 : table.entries[static_cast<std::size_t>(tile.sequence)].first_line / kTileQ;
    return line * line_tiles + first + term.tile;
  }

  Problem problem;
  ScheduleLists lists;
  bool alike;
  SequenceTable table;
  std::int64_t tiles_of_head = 0, line_tiles = 0;
  std::vector<ListedTile> tiles;
};

// Runs all blocks as the kernel does: a term waits for its turn. Stops when none can go on.
void run(const Planned& planned, std::int64_t blocks) {
  const ListedPlay play = planned.play(blocks);
  std::map<std::int32_t, ListedTile> by_number;
  for (const ListedTile& tile : planned.tiles) by_number[tile.number] = tile;
  struct Block {
    std::size_t task;
    std::int32_t term;
  };
  std::vector<Block> state;
  for (std::int64_t b = 0; b < blocks; ++b) state.push_back({static_cast<std::size_t>(b), -1});
  std::map<std::int64_t, std::int32_t> turns;
  std::set<std::tuple<std::int32_t, std::int32_t, std::int32_t>> done;  // tile of keys, member, tile of queries
  std::size_t finished = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (Block& block : state) {
      if (block.task >= play.tasks.size() || play.tasks[block.task].number < 0) continue;
      const sm90::ListedTask& task = play.tasks[block.task];
      if (block.term < 0) block.term = task.begin;
      if (block.term == task.end) {
        ++finished;
        block = {block.task + static_cast<std::size_t>(blocks), -1};
        moved = true;
        continue;
      }
      const sm90::ListedTerm& term = play.terms.at(static_cast<std::size_t>(block.term));
      const ListedTile& tile = by_number.at(task.number);
      std::int32_t& turn = turns[planned.query_tile(tile, term)];
      if (turn != term.turn) continue;
      ++turn;
      EXPECT_TRUE(done.emplace(task.number, term.member, term.tile).second) << "a visit is there twice";
      const std::int64_t head = tile.head * planned.problem.group_size() + term.member;
      bool listed = false;
      for (const auto& visit : planned.lists.columns[planned.lists.column_of(tile.sequence, head, tile.tile)]) {
        listed = listed || (visit.tile == term.tile && visit.bits == term.bits);
      }
      EXPECT_TRUE(listed);
      ++block.term;
      moved = true;
    }
  }
  EXPECT_EQ(finished, planned.tiles.size()) << "blocks wait for each other for ever, or a tile is missing";
  // Sums are of all tiles of queries, each once and complete with its last term.
  std::set<std::int32_t> summed;
  for (const sm90::ListedSum& sum : play.sums) {
    EXPECT_TRUE(summed.insert(sum.tile).second);
    EXPECT_EQ(sum.terms, turns[sum.tile]);
    EXPECT_TRUE(sum.rows > 0 && sum.rows <= kTileQ);
  }
  EXPECT_EQ(static_cast<std::int64_t>(summed.size()), planned.query_tiles());
  std::size_t visits = 0;
  for (const ListedTile& tile : planned.tiles) visits += static_cast<std::size_t>(tile.visits);
  EXPECT_EQ(done.size(), visits);
}

Problem problem_of(std::int64_t tokens, std::int64_t heads, const Mask& mask) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = problem.seq_k = tokens;
  problem.heads_q = problem.heads_kv = heads;
  problem.dim_qk = problem.dim_v = 64;
  problem.mask = mask;
  return problem;
}

void run_all(const Problem& problem) {
  const Planned planned(problem);
  for (const std::int64_t blocks : {1, 3, 17, 132}) {
    SCOPED_TRACE(std::to_string(blocks) + " blocks, " + problem.describe());
    run(planned, blocks);
  }
}

TEST(ListedPlan, EveryVisitOnceAndNobodyWaitsForEver) {
  const BlockGrid grid{2000, 2000, 128, 128};
  for (const double density : {0.0, 0.2, 1.0}) {
    run_all(problem_of(2000, 3, Mask::blocks(block_patterns::random(grid, density, 1))));
  }
  run_all(problem_of(2000, 2, Mask::blocks(block_patterns::butterfly(grid)) & Mask::causal()));
}

TEST(ListedPlan, GroupedHeadsWithPatternsOfTheirOwn) {
  const BlockGrid grid{700, 700, 64, 64};
  std::vector<BlockMask> heads;
  for (std::uint64_t h = 0; h < 4; ++h) heads.push_back(block_patterns::random(grid, 0.25, h));
  Problem problem = problem_of(700, 4, Mask::blocks(BlockMask::over_heads(heads)));
  problem.batch = 2;
  problem.heads_kv = 2;
  run_all(problem);
}

TEST(ListedPlan, SequencesThatDiffer) {
  Problem problem = problem_of(0, 2, Mask());
  set_ragged(problem, {0, 70, 70, 400, 1401}, {0, 131, 140, 540, 1540});
  const BlockGrid grid{problem.seq_q, problem.seq_k, 128, 128};
  problem.mask = Mask::blocks(block_patterns::random(grid, 0.5, 8));
  run_all(problem);
  Problem padded = problem_of(500, 2, Mask::blocks(block_patterns::random({500, 500, 128, 128}, 0.7, 9)));
  padded.batch = 3;
  padded.key_lengths = {500, 0, 130};
  run_all(padded);
}

// A tile of queries takes its terms of dQ one after the other: where the heads of a section have tiles of keys of one length, the
// blocks at work are spread over all of them.
TEST(ListedPlan, HeadsOfASectionTakeTurns) {
  constexpr std::int64_t kHeads = 4;
  const BlockGrid grid{2048, 2048, 128, 128};
  const Problem problem = problem_of(2048, kHeads, Mask::blocks(block_patterns::butterfly(grid)));
  const ScheduleLists lists = list_schedules(problem, kTileQ, kTileK, internal::BitOrder::by_key);
  const auto tiles = order_listed_tiles(problem, lists, ListedSide::keys, {}, {kTileK, 16, 512, 8 << 20});
  ASSERT_EQ(tiles.size(), 16 * kHeads);
  for (std::size_t n = 0; n < tiles.size(); ++n) {
    EXPECT_EQ(tiles[n].head, static_cast<std::int32_t>(n % kHeads)) << n;
    EXPECT_EQ(tiles[n].tile, static_cast<std::int32_t>(n / kHeads)) << n;
  }
}

// Each block gets about the same work: of many tiles of random length, no block has a tenth more than the mean.
TEST(ListedPlan, LongRowsFirstBalanceTheBlocks) {
  const BlockGrid grid{8192, 8192, 128, 128};
  std::vector<BlockMask> heads;
  for (std::uint64_t h = 0; h < 16; ++h) {
    heads.push_back(block_patterns::random(grid, h < 4 ? 0.5 : 0.1, h));
  }
  const Problem problem = problem_of(8192, 16, Mask::blocks(BlockMask::over_heads(heads)));
  const ScheduleLists lists = list_schedules(problem, 128, 128);
  const auto tiles = order_listed_tiles(problem, lists, ListedSide::queries, {}, {128, 64, 256, 8 << 20});
  constexpr std::int64_t kBlocks = 132;
  const std::vector<std::int32_t> table = deal_listed_tiles(tiles, kBlocks, 1.5);
  std::map<std::int32_t, std::int64_t> visits;
  for (const ListedTile& tile : tiles) visits[tile.number] = tile.visits;
  std::vector<double> load(kBlocks, 0.0);
  double total = 0.0;
  std::size_t dealt = 0;
  for (std::size_t n = 0; n < table.size(); ++n) {
    if (table[n] < 0) continue;
    const double cost = static_cast<double>(visits.at(table[n])) + 1.5;
    load[n % kBlocks] += cost;
    total += cost;
    ++dealt;
  }
  EXPECT_EQ(dealt, tiles.size());
  EXPECT_LT(*std::max_element(load.begin(), load.end()), 1.1 * total / kBlocks);
}

}  // namespace
}  // namespace tessera
