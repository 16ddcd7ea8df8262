// How tiles of keys are dealt to groups of blocks, and the turns of their terms of dQ: needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/sm90/bwd/order.h"
#include "cuda/sm90/bwd/order_plan.h"

namespace tessera {
namespace {

using sm90::BackwardOrder;
using sm90::DealtTile;
using sm90::GroupDeal;
using sm90::KeyTileVisits;
using sm90::Way;

// Query i sees the keys i + lower .. i + upper.
struct Shape {
  int queries, keys, tile_q, tile_k, lower, upper;
  int members = 1;  // query heads of a key head

  bool dense() const { return lower <= -queries && upper >= keys; }
  bool causal() const { return lower <= -queries && upper < keys; }
  int query_tiles() const { return (queries + tile_q - 1) / tile_q; }
  int key_tiles() const { return (keys + tile_k - 1) / tile_k; }

  bool sees(int query_tile, int key_tile) const {
    const int first_query = query_tile * tile_q;
    const int last_query = std::min(first_query + tile_q, queries) - 1;
    const int first_key = key_tile * tile_k;
    const int last_key = std::min(first_key + tile_k, keys) - 1;
    return first_query + lower <= last_key && last_query + upper >= first_key;
  }
  KeyTileVisits::Range visitors(int query_tile) const {
    return range(key_tiles(), [&](int key_tile) { return sees(query_tile, key_tile); });
  }
  KeyTileVisits::Range queries_of(int key_tile) const {
    return range(query_tiles(), [&](int query_tile) { return sees(query_tile, key_tile); });
  }

  template <class Sees>
  static KeyTileVisits::Range range(int tiles, Sees&& sees) {
    KeyTileVisits::Range found{0, 0};
    for (int tile = 0; tile < tiles; ++tile) {
      if (sees(tile)) {
        if (found.begin == found.end) found.begin = tile;
        found.end = tile + 1;
      }
    }
    return found;
  }
};

struct Term {
  int line, member, query_tile, key_tile, turn;
};

// What each block adds, in its order.
std::vector<std::vector<Term>> deal_terms(const Shape& shape, const BackwardOrder& order, int lines, int blocks) {
  std::vector<std::vector<Term>> terms(static_cast<std::size_t>(blocks));
  for (int block = 0; block < blocks; ++block) {
    for (GroupDeal deal(order, lines, block, blocks); !deal.done(); deal.advance()) {
      const DealtTile tile = deal.tile();
      EXPECT_LT(tile.line, lines);
      EXPECT_LT(tile.key_tile, shape.key_tiles());
      const KeyTileVisits::Range queries = shape.queries_of(tile.key_tile);
      const KeyTileVisits visits(tile.key_tile, shape.key_tiles(), queries, tile.way, shape.dense(), shape.causal(),
                                 order);
      EXPECT_EQ(KeyTileVisits::way_of(visits.start()), tile.way);
      for (int member = 0; member < shape.members; ++member) {
        const int start = KeyTileVisits::start(visits.start(), member, shape.members);
        for (int step = 0; step < queries.end - queries.begin; ++step) {
          const int query_tile = KeyTileVisits::at(queries, start, step);
          const int turn = visits.turn(query_tile, shape.visitors(query_tile));
          terms[static_cast<std::size_t>(block)].push_back({tile.line, member, query_tile, tile.key_tile, turn});
        }
      }
    }
  }
  return terms;
}

// Every pair of tiles once, the turns of a tile of queries 0, 1, 2, ..., and no block waits for ever.
void expect_plays(const Shape& shape, const BackwardOrder& order, int lines, int blocks) {
  const auto terms = deal_terms(shape, order, lines, blocks);
  std::set<std::tuple<int, int, int, int>> pairs;
  std::size_t count = 0;
  for (const auto& of_block : terms) {
    for (const Term& term : of_block) pairs.insert({term.line, term.member, term.query_tile, term.key_tile});
    count += of_block.size();
  }
  std::size_t wanted = 0;
  for (int tile = 0; tile < shape.key_tiles(); ++tile) {
    const KeyTileVisits::Range queries = shape.queries_of(tile);
    wanted += static_cast<std::size_t>(queries.end - queries.begin);
  }
  wanted *= static_cast<std::size_t>(lines) * static_cast<std::size_t>(shape.members);
  ASSERT_EQ(pairs.size(), count) << "a pair of tiles is visited twice";
  ASSERT_EQ(count, wanted) << "not every pair of tiles is visited";

  std::vector<std::size_t> next(terms.size(), 0);
  std::map<std::tuple<int, int, int>, int> turns;
  std::size_t added = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t block = 0; block < terms.size(); ++block) {
      while (next[block] < terms[block].size()) {
        const Term& term = terms[block][next[block]];
        int& turn = turns[{term.line, term.member, term.query_tile}];
        if (turn != term.turn) break;
        ++turn;
        ++next[block];
        ++added;
        moved = true;
      }
    }
  }
  ASSERT_EQ(added, count) << "blocks wait for each other";
}

struct Planned {
  BackwardOrder order{};
  int blocks = 0;
};

Planned plan(const Shape& shape, int lines, int multiprocessors) {
  Planned planned;
  planned.order.tiles_of_head = shape.key_tiles();
  const int head_bytes = shape.queries * 8 * (shape.tile_q == 64 ? 128 : 64);
  planned.blocks = static_cast<int>(internal::deal_to_groups(
      {lines, shape.key_tiles(), head_bytes, shape.query_tiles(), shape.causal(), shape.tile_q / 64, multiprocessors},
      planned.order));
  return planned;
}

std::string describe(const Shape& shape, const Planned& planned, int lines) {
  return std::to_string(shape.queries) + " queries in tiles of " + std::to_string(shape.tile_q) + ", " +
         std::to_string(shape.keys) + " keys in tiles of " + std::to_string(shape.tile_k) + ", band " +
         std::to_string(shape.lower) + ".." + std::to_string(shape.upper) + ", " + std::to_string(lines) +
         " heads of " + std::to_string(shape.members) + ", " + std::to_string(planned.blocks) +
         " blocks in groups of " + std::to_string(planned.order.group) + ", tiles " +
         std::to_string(planned.order.apart) + " apart, spread over " + std::to_string(planned.order.spread);
}

constexpr int kEverything = 1 << 29;

TEST(BackwardOrder, RandomShapes) {
  std::mt19937 random(20240607);
  const auto between = [&](int first, int last) { return std::uniform_int_distribution<int>(first, last)(random); };
  for (int n = 0; n < 3000; ++n) {
    Shape shape{between(1, 1500), between(1, 1500), between(0, 1) == 0 ? 64 : 128, 128, -kEverything, kEverything};
    const int mask = between(0, 2);
    if (mask > 0) shape.upper = between(0, 2) == 0 ? between(-1500, 1500) : shape.keys - shape.queries;
    if (mask > 1) shape.lower = shape.upper - between(0, 900);
    shape.members = between(1, 12);
    const int lines = between(1, 12);
    Planned planned = plan(shape, lines, between(1, 30));
    if (between(0, 1) == 0) {  // whatever the plan prefers
      planned.order.apart = between(1, std::min((shape.key_tiles() + 1) / 2, 4));
      planned.order.folded = shape.causal() ? between(0, 1) : 0;
      const int tiles = planned.order.folded != 0 ? (shape.key_tiles() + 1) / 2 : shape.key_tiles();
      planned.order.group = between(1, (tiles + planned.order.apart - 1) / planned.order.apart);
      planned.order.span = planned.order.group * planned.order.apart;
      planned.order.spread = between(1, shape.query_tiles());
      planned.blocks = planned.order.group * between(1, 3);
    }
    SCOPED_TRACE(describe(shape, planned, lines));
    ASSERT_GT(planned.blocks, 0);
    ASSERT_EQ(planned.blocks % planned.order.group, 0);
    ASSERT_NO_FATAL_FAILURE(expect_plays(shape, planned.order, lines, planned.blocks));
  }
}

// Ragged batches: no groups, chains handed out in ascending order by a counter.
TEST(BackwardOrder, ChainsWithoutGroups) {
  for (const int queries : {1, 300, 1000}) {
    for (const int keys : {1, 500, 1300}) {
      for (const int upper : {kEverything, keys - queries, 0}) {
        const Shape shape{queries, keys, 64, 128, -kEverything, upper};
        BackwardOrder order{};
        order.apart = 1;
        order.span = shape.key_tiles();
        std::map<int, int> turns;
        for (int tile = 0; tile < shape.key_tiles(); ++tile) {
          const KeyTileVisits::Range visited = shape.queries_of(tile);
          const KeyTileVisits visits(tile, shape.key_tiles(), visited, Way::down, shape.dense(), shape.causal(), order);
          for (int step = 0; step < visited.end - visited.begin; ++step) {
            const int query_tile = KeyTileVisits::at(visited, visits.start(), step);
            ASSERT_EQ(visits.turn(query_tile, shape.visitors(query_tile)), turns[query_tile]++);
          }
        }
      }
    }
  }
}

// Of the blocks of one head or pair of heads, all of which take a step at a time: how many steps lie between terms that follow
// each other on a tile of queries.
struct Distance {
  int least = kEverything;
  int most = 0;
};

Distance distance(const Shape& shape, const Planned& planned) {
  std::map<std::tuple<int, int, int>, std::map<int, int>> steps;  // of (line, member, tile of queries): of its terms
  const auto terms = deal_terms(shape, planned.order, 2, planned.order.group);
  for (const auto& of_block : terms) {
    int step = 0;
    for (const Term& term : of_block) steps[{term.line, term.member, term.query_tile}][term.turn] = step++;
  }
  Distance found;
  for (const auto& [tile, of_turn] : steps) {
    for (auto next = of_turn.begin(), at = next++; next != of_turn.end(); at = next++) {
      found.least = std::min(found.least, next->second - at->second);
      found.most = std::max(found.most, next->second - at->second);
    }
  }
  return found;
}

// Of tiles of 64 queries (wide heads) they are so whatever the chunks, of 128 in two chunks.
TEST(BackwardOrder, BlocksAreTwoStepsApart) {
  for (const int tile_q : {64, 128}) {
    for (const int length : {512, 1024, 2048, 4096, 8192, 16384}) {
      for (const bool causal : {false, true}) {
        const Shape shape{length, length, tile_q, 128, -kEverything, causal ? 0 : kEverything};
        const int lines = 16384 / length * (tile_q == 64 ? 16 : 32);
        const Planned planned = plan(shape, lines, 132);
        SCOPED_TRACE(describe(shape, planned, lines));
        const bool small = causal && length < 2048;  // two chunks are too much for the cache
        EXPECT_GE(distance(shape, planned).least, small && tile_q == 128 ? 1 : 2);
        EXPECT_GE(planned.blocks, 128);
      }
    }
  }
}

// The blocks of a group follow each other so soon that what they share is in the L2 cache still, the sooner the fewer query
// heads a key head has.
TEST(BackwardOrder, GroupedHeadsStayTogether) {
  for (const int tile_q : {64, 128}) {
    for (const int members : {1, 2, 3, 4, 5, 8}) {
      const Shape shape{8192, 8192, tile_q, 128, -kEverything, 0, members};
      const int lines = 16;
      const Planned planned = plan(shape, lines, 132);
      SCOPED_TRACE(describe(shape, planned, lines));
      const Distance found = distance(shape, planned);
      EXPECT_GE(found.least, 2);
      if (tile_q == 64) {  // else there is a second chunk
        EXPECT_LE(found.most, 2 * std::max(members - 1, 1));
      }
    }
  }
}

TEST(BackwardOrder, LengthsBetweenKeepTheDeviceBusy) {
  for (const int length : {5000, 6000, 10000, 12000, 20000, 25000, 50000}) {
    for (const bool causal : {false, true}) {
      const Shape shape{length, length, 64, 128, -kEverything, causal ? 0 : kEverything};
      const int lines = 64;
      const Planned planned = plan(shape, lines, 132);
      SCOPED_TRACE(describe(shape, planned, lines));
      std::vector<std::size_t> tiles;
      for (int block = 0; block < planned.blocks; ++block) {
        std::size_t of_block = 0;
        for (GroupDeal deal(planned.order, lines, block, planned.blocks); !deal.done(); deal.advance()) ++of_block;
        tiles.push_back(of_block);
      }
      const double most = static_cast<double>(*std::max_element(tiles.begin(), tiles.end()));
      EXPECT_GE(lines * shape.key_tiles() / most / 132, 0.87);
    }
  }
}

TEST(BackwardOrder, FewHeadsKeepTheDeviceBusy) {
  const Shape shape{16384, 16384, 128, 128, -kEverything, kEverything};
  EXPECT_EQ(plan(shape, 1, 132).blocks, 128);
  EXPECT_EQ(plan(shape, 2, 132).order.apart, 2);
}

TEST(BackwardOrder, HeadsAtATimeFitTheCache) {
  Shape shape{4096, 4096, 64, 128, -kEverything, kEverything};
  EXPECT_EQ(plan(shape, 64, 132).order.apart, 2);
  shape.upper = 0;
  EXPECT_EQ(plan(shape, 64, 132).order.apart, 1);
}

}  // namespace
}  // namespace tessera
