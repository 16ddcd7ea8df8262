// How tiles of keys are handed out, and in which order their terms of dQ are added. Nothing here needs a GPU.
//
// A tile of queries gets one term of dQ from each tile of keys that sees it. The terms of one tile of queries are added in one
// order in every run, and a block waits for its turn; a turn takes about as long as a step. So a block may wait only for blocks
// that are sure to run (all blocks of the launch do: it is cooperative), and blocks that follow each other on a tile of queries
// should be two steps apart.
//
// Tiles of keys are dealt to groups of blocks, a head to a group. Where it has more tiles than the group blocks, the group takes
// them in chunks: of each `span` tiles that follow each other, every `apart`-th. Under a causal mask the tiles of a chunk then
// begin `apart` tiles of keys apart, and no further: what they share of Q, dO and dQ has to stay in the L2 cache from one block
// to the next, and that is as much as all blocks go through meanwhile.
#pragma once

#include <cstdint>

namespace tessera::sm90 {

// How a tile of keys visits the tiles of queries, see KeyTileVisits.
enum class Way : std::int32_t { up = 0, down = -1, first = -2, second = -3 };

// Terms are added in ascending order of keys, and tiles of keys counted from the end: of the odd ones.
constexpr bool is_chain(Way way) { return (static_cast<int>(way) & 1) != 0; }

struct BackwardOrder {
  std::int32_t tiles;          // of keys, in all
  std::int32_t tiles_of_head;  // of one key head (of all sequences, where they differ)
  std::int32_t section_heads;  // (batch, key head) pairs whose tiles of keys are handed out together
  std::int32_t* counter;       // of tiles handed out behind the first of each block; null: tiles are dealt
  std::int32_t* turns;         // for each tile of queries: terms added so far; null: any order
  Way way;                     // of tiles that are not dealt

  // Of tiles that are dealt to groups of blocks:
  std::int32_t group;   // blocks, which work on so many tiles of keys of a head at a time; 0: no groups
  std::int32_t paired;  // 1: heads are dealt in pairs
  std::int32_t folded;  // 1: or each is a pair of its own, of its first and its second half
  std::int32_t apart;   // tiles of keys between those of a chunk; at least 1
  std::int32_t span;    // tiles of keys that the chunks are taken from: apart * group, or all where there are no groups
  std::int32_t spread;  // tiles of queries over which the starts of a chunk are spread, where it goes round
};

// The tiles of queries that one tile of keys visits, and whose turn it is on each. Terms are added chunk by chunk; in a chunk
// - going round (dense masks): tiles of keys start at different tiles of queries, and terms are added in the order in which they
//   come up when all start together;
// - up: each tile of keys starts at its own first tile of queries, which later keys reach first;
// - down: tiles of queries are visited from the last one and terms added in ascending order of keys. Tiles of keys are counted
//   from the end. Where they are handed out in that order, a block waits only for tiles that were handed out before its own.
//
// In groups a block then waits for blocks of higher number alone, unless they go round, and blocks follow each other on any tile
// of queries at a distance.
//
// first and second are the ways of a pair of heads (see GroupDeal), whose query heads are visited one after the other. Their turns
// are those of up and of down. When neighbours in a chunk begin a query head, the higher one is `lead` tiles of keys ahead, which
// each query head of the first makes one more and each of the second one less. Going down from the last tile of queries they stay
// `lead` apart; going up from their own first ones, they are one more apart in the first and one less in the second. Of both, the
// smaller distance is taken that is not 0: with four query heads each 1, 1, 2, 3 and 3, 2, 1, 1 tiles of keys, where up alone in
// the first and down alone in the second take 1, 2, 3, 4 and 4, 3, 2, 1. What they share must stay in the L2 cache for so long.
class KeyTileVisits {
 public:
  struct Range {
    int begin, end;
  };
  // `tile` of `tiles` of keys. Only what every tile of queries sees can go round, and only under a causal mask heads are folded.
  constexpr KeyTileVisits(int tile, int tiles, Range queries, Way way, bool round, bool causal,
                          const BackwardOrder& order)
      : queries_(queries),
        way_(way),
        round_(round && way == Way::up),
        folded_(causal && order.folded != 0),
        tiles_(tiles),
        span_(order.span),
        apart_(order.apart),
        group_(order.group),
        spread_(order.spread),
        index_(is_chain(way) ? tiles - 1 - tile : tile) {}

  // Where it starts, in tiles of queries behind the first one; below 0 a way.
  constexpr int start() const {
    if (!round_) {
      return static_cast<int>(way_);
    }
    return group_ > 0 ? place() * spread_ / group_ : index_ * (queries_.end - queries_.begin) / tiles_;
  }
  static constexpr Way way_of(int start) { return start < 0 ? Way{start} : Way::up; }

  // That of one of `members` query heads: below 0 for the last tile of queries.
  static constexpr int start(int start, int member, int members) {
    const Way way = way_of(start);
    if (way == Way::up || way == Way::down) {
      return start;
    }
    const int lead = way == Way::first ? member : members - member;
    return (way == Way::first ? lead >= 1 : lead == 1) ? -1 : 0;
  }

  // The tile of queries of step `step`, below the length of `queries`, from the start of one query head.
  static constexpr int at(Range queries, int start, int step) {
    if (start < 0) {
      return queries.end - 1 - step;
    }
    const int place = queries.begin + start + step;
    return place >= queries.end ? place - (queries.end - queries.begin) : place;
  }

  // How many terms are added to dQ of `query_tile`, which sees the tiles `visitors` of keys, before the one of this tile. Only in
  // groups do tiles go round in turn.
  constexpr int turn(int query_tile, Range visitors) const {
    if (round_) {
      const int started = ((query_tile + 1) * group_ + spread_ - 1) / spread_;  // in this tile of queries or before
      const int turn = (started < in_chunk() ? started : in_chunk()) - 1 - place();
      return before(tiles_, chunk()) + (turn < 0 ? turn + in_chunk() : turn);
    }
    const Range range = own(visitors, is_chain(way_));
    const int earlier = between(range, chunk()) + of_other_half(visitors);
    const int end = range.end < first() + span_ ? range.end : first() + span_;
    return earlier + (end - 1 - index_) / apart_;
  }

 private:
  constexpr int first() const { return index_ - index_ % span_; }  // of the tiles that its chunk is taken from
  constexpr int chunk() const { return index_ % span_ % apart_; }
  constexpr int place() const { return index_ % span_ / apart_; }  // in its chunk
  constexpr int in_chunk() const {
    const int rest = tiles_ - first();
    return ((rest < span_ ? rest : span_) - chunk() + apart_ - 1) / apart_;
  }
  // Of the tiles below `end`: how many are in the chunks before the `chunk`-th of this span.
  constexpr int before(int end, int chunk) const {
    if (end <= first()) {
      return end;
    }
    const int here = end - first() < span_ ? end - first() : span_;
    const int rest = here % apart_;
    return first() + here / apart_ * chunk + (rest < chunk ? rest : chunk);
  }
  constexpr int between(Range range, int chunk) const { return before(range.end, chunk) - before(range.begin, chunk); }

  // Tiles as they are counted by the first or the second of a pair, of a folded head those of its half.
  constexpr Range own(Range visitors, bool chain) const {
    const Range range = chain ? Range{tiles_ - visitors.end, tiles_ - visitors.begin} : visitors;
    if (!folded_) {
      return range;
    }
    const int half = chain ? tiles_ / 2 : tiles_ - tiles_ / 2;
    return {range.begin < half ? range.begin : half, range.end < half ? range.end : half};
  }
  // Terms of a folded head's other half before this chunk's: in a chunk the first half comes first.
  constexpr int of_other_half(Range visitors) const {
    return folded_ ? between(own(visitors, !is_chain(way_)), chunk() + (is_chain(way_) ? 1 : 0)) : 0;
  }

  Range queries_;
  Way way_;
  bool round_, folded_;
  int tiles_, span_, apart_, group_, spread_;
  int index_;
};

struct DealtTile {
  int line;      // the head, among those of all batches
  int key_tile;  // of the head
  Way way;
};

// The tiles of one block, one after the other, where they are dealt to groups of blocks. A group takes a head, all chunks of it,
// then the next of its heads. Under a causal mask tiles of keys differ in length: heads are taken in pairs, and a block that has
// tile t of the first has the t-th from the end of the second, which takes every block the same time. Every block of a group has
// a tile of the first chunk.
class GroupDeal {
 public:
  constexpr GroupDeal(const BackwardOrder& order, int lines, int block, int blocks)
      : order_(order), lines_(order.group > 0 ? lines : 0) {
    if (order.group > 0) {
      groups_ = blocks / order.group;
      unit_ = block / order.group;
      first_index_ = block % order.group * order.apart;
      index_ = first_index_;
    }
  }

  constexpr bool done() const { return first_line() >= lines_; }

  constexpr DealtTile tile() const {
    if (second_) {
      return {first_line() + (order_.folded != 0 ? 0 : 1), order_.tiles_of_head - 1 - index_, Way::second};
    }
    return {first_line(), index_, order_.paired != 0 ? Way::first : Way::up};
  }

  constexpr void advance() {
    second_ = !second_ && has_second();
    if (second_) {
      return;
    }
    index_ += (index_ + 1) % order_.apart != 0 ? 1 : order_.span - order_.apart + 1;
    if (index_ >= first_tiles()) {  // this block has none in the chunks that are left
      index_ = first_index_;
      unit_ += groups_;
    }
  }

 private:
  constexpr int first_line() const { return order_.paired != 0 && order_.folded == 0 ? 2 * unit_ : unit_; }
  constexpr int first_tiles() const {  // of the first of a pair
    return order_.folded != 0 ? order_.tiles_of_head - order_.tiles_of_head / 2 : order_.tiles_of_head;
  }
  constexpr bool has_second() const {
    return order_.folded != 0 ? index_ < order_.tiles_of_head / 2 : order_.paired != 0 && first_line() + 1 < lines_;
  }

  const BackwardOrder& order_;
  int lines_;
  int groups_ = 1;
  int unit_ = 0;  // a head or a pair of heads
  int first_index_ = 0;
  int index_ = 0;  // of the tile of the first of a pair
  bool second_ = false;
};

}  // namespace tessera::sm90
