// How tiles of keys are handed out, and in which order their terms of dQ are added. Nothing here needs a GPU.
//
// A tile of queries gets one term of dQ from each tile of keys that sees it. The terms of one tile of queries are added in one
// order in every run, and a block waits for its turn; a turn takes about as long as a step. So a block may wait only for blocks
// that are sure to run (all blocks of the launch do: it is cooperative), and blocks that follow each other on a tile of queries
// should be two steps apart.
//
// Tiles of keys are dealt to groups of blocks, a head to a group. Where it has more tiles than the group blocks, the group takes
// them in chunks, of which the n-th holds the tiles n, n + chunks, n + 2 chunks, ...: under a causal mask the tiles of a chunk
// then begin `chunks` tiles of keys apart.
#pragma once

#include <cstdint>

namespace tessera::sm90 {

// In which direction a tile of keys visits tiles of queries, see KeyTileVisits.
enum class DqOrder : std::int32_t { chain, together };

struct BackwardOrder {
  std::int32_t tiles;          // of keys, in all
  std::int32_t tiles_of_head;  // of one key head (of all sequences, where they differ)
  std::int32_t section_heads;  // (batch, key head) pairs whose tiles of keys are handed out together
  std::int32_t* counter;       // of tiles handed out behind the first of each block; null: tiles are dealt
  std::int32_t* turns;         // for each tile of queries: terms added so far; null: any order
  DqOrder dq_order;
  std::int32_t paired;  // 1: heads are dealt in pairs to groups of blocks
  std::int32_t group;   // blocks of a group, which work on so many tiles of keys of a head at a time; 0: no groups
  std::int32_t chunks;  // in which a group takes the tiles of a head; at least 1, which is no chunks
};

// The tiles of queries that one tile of keys visits, and whose turn it is on each. Terms are added chunk by chunk; in a chunk
// - going round (dense masks): tiles of keys start at different tiles of queries, and terms are added in the order in which they
//   come up when all start together;
// - together: each tile of keys starts at its own first tile of queries, which later keys reach first;
// - chain: tiles of queries are visited from the last one and terms added in ascending order of keys. Tiles of keys are counted
//   from the end here. Where they are handed out in that order, a block waits only for tiles that were handed out before its own.
// In groups a block then waits for blocks of higher number alone, unless they go round, and blocks follow each other on any tile
// of queries at a distance.
class KeyTileVisits {
 public:
  struct Range {
    int begin, end;
  };

  // `tile` of `tiles` of keys. Only what every tile of queries sees can go round.
  constexpr KeyTileVisits(int tile, int tiles, Range queries, DqOrder order, int chunks, bool round)
      : queries_(queries),
        chain_(order == DqOrder::chain),
        round_(round && !chain_),
        tiles_(tiles),
        chunks_(chunks),
        index_(chain_ ? tiles - 1 - tile : tile) {}

  // Where it starts, in tiles of queries behind the first one; -1 of a chain.
  constexpr int start() const { return chain_ ? -1 : round_ ? index_ / chunks_ * count() / in_chunk() : 0; }

  // The tile of queries of step `step`, below the length of `queries`.
  static constexpr int at(Range queries, int start, int step) {
    if (start < 0) {
      return queries.end - 1 - step;
    }
    const int place = queries.begin + start + step;
    return place >= queries.end ? place - (queries.end - queries.begin) : place;
  }

  // How many terms are added to dQ of `query_tile`, which sees the tiles `visitors` of keys, before the one of this tile.
  constexpr int turn(int query_tile, Range visitors) const {
    if (round_) {
      const int started = ((query_tile + 1) * in_chunk() + count() - 1) / count();  // in this tile of queries or before
      const int turn = (started < in_chunk() ? started : in_chunk()) - 1 - index_ / chunks_;
      return in_earlier_chunks(tiles_) + (turn < 0 ? turn + in_chunk() : turn);
    }
    const Range range = chain_ ? Range{tiles_ - visitors.end, tiles_ - visitors.begin} : visitors;
    return in_earlier_chunks(range.end) - in_earlier_chunks(range.begin) + (range.end - 1 - index_) / chunks_;
  }

 private:
  constexpr int count() const { return queries_.end - queries_.begin; }
  constexpr int chunk() const { return index_ % chunks_; }
  constexpr int in_chunk() const { return (tiles_ - chunk() + chunks_ - 1) / chunks_; }
  // Of the tiles below `end`.
  constexpr int in_earlier_chunks(int end) const {
    const int rest = end % chunks_;
    return end / chunks_ * chunk() + (rest < chunk() ? rest : chunk());
  }

  Range queries_;
  bool chain_, round_;
  int tiles_, chunks_;
  int index_;
};

struct DealtTile {
  int line;      // the head, among those of all batches
  int key_tile;  // of the head
  DqOrder dq_order;
};

// The tiles of one block, one after the other, where they are dealt to groups of blocks. A group takes a head, all chunks of it,
// then the next of its heads. Under a causal mask tiles of keys differ in length: heads are taken in pairs, and a block that has
// tile t of the first (together) has the t-th from the end of the second (chain), which takes every block the same time. Every
// block of a group has a tile of the first chunk.
class GroupDeal {
 public:
  constexpr GroupDeal(const BackwardOrder& order, int lines, int block, int blocks)
      : order_(order), lines_(order.group > 0 ? lines : 0) {
    if (order.group > 0) {
      groups_ = blocks / order.group;
      unit_ = block / order.group;
      position_ = block % order.group;
    }
  }

  constexpr bool done() const { return first_line() >= lines_; }

  constexpr DealtTile tile() const {
    if (second_) {
      return {first_line() + 1, order_.tiles_of_head - 1 - index(), DqOrder::chain};
    }
    return {first_line(), index(), DqOrder::together};
  }

  constexpr void advance() {
    second_ = order_.paired != 0 && !second_ && first_line() + 1 < lines_;
    if (!second_ && (++chunk_ == order_.chunks || index() >= order_.tiles_of_head)) {
      chunk_ = 0;
      unit_ += groups_;
    }
  }

 private:
  constexpr int first_line() const { return order_.paired != 0 ? 2 * unit_ : unit_; }
  constexpr int index() const { return position_ * order_.chunks + chunk_; }

  const BackwardOrder& order_;
  int lines_;
  int groups_ = 1;
  int position_ = 0;  // in its group
  int unit_ = 0;      // a head or a pair of heads
  int chunk_ = 0;
  bool second_ = false;  // of a pair
};

}  // namespace tessera::sm90
