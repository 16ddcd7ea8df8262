// Role joint: in which order blocks take tiles of keys and visit tiles of queries, and whose turn it is to add to dQ of each.
//
// Where the order matters, heads are dealt to groups of blocks, one tile of keys for each block, and everything is timed so that nobody waits long. A
// block may wait only for blocks that are sure to run: all of a launch do (it is cooperative).
// - Dense: blocks of a group start at different tiles of queries and go round.
// - Otherwise each starts at the first tile of queries that sees its keys, which later keys reach first; heads come in pairs,
//   the second with tiles from the other end, visited backwards ("chain"): so every block has the same work, and in both heads
//   it waits for blocks of higher number alone.
// Heads with more tiles than blocks are worked on in chunks of a group, one after the other.
#pragma once

#include "cuda/sm80/bwd/visits.cuh"

namespace tessera::sm80 {

// The items of a block, one after the other: in turns those of its group, tile by tile of every head or pair of heads.
struct JointItem {
  int item;  // a tile or, in turns, a head or a pair of heads
  int chunk;
  bool second;  // of a pair
};
template <BackwardConfig kConfig>
class JointItems {
 public:
  TESSERA_DEVICE JointItems(const BackwardParams& params, const JointItem& at) : params_(params), at_(at) {}

  // In front of the first one.
  TESSERA_DEVICE static JointItem before(const BackwardParams& params) {
    const int group = group_of(params);
    return {static_cast<int>(blockIdx.x) / group - static_cast<int>(gridDim.x) / group, params.turns.chunks - 1, true};
  }

  TESSERA_DEVICE const JointItem& at() const { return at_; }
  TESSERA_DEVICE bool valid() const { return at_.item < params_.items; }
  // To the next one that has a tile: in turns a block may have none in the last chunk of a head.
  TESSERA_DEVICE void advance() {
    do {
      step();
    } while (valid() && params_.turns.terms != nullptr && chunk_tile() >= params_.tiles_of_head);
  }

  TESSERA_DEVICE OwnedTile owned() const {
    const BackwardTurns& turns = params_.turns;
    if (turns.terms == nullptr) {
      return owned_tile<kConfig, BackwardRole::joint>(params_, at_.item);
    }
    OwnedTile owned{};
    const int line = turns.paired != 0 ? 2 * at_.item + (at_.second ? 1 : 0) : at_.item;
    owned.chain = at_.second;
    owned.tile = at_.second ? params_.tiles_of_head - 1 - chunk_tile() : chunk_tile();
    owned.index = line / key_heads();
    owned.head = line % key_heads();
    owned.sequence = tile::sequence_of(params_.batch, owned.index);
    return owned;
  }

 private:
  TESSERA_DEVICE static int group_of(const BackwardParams& params) {
    return params.turns.terms != nullptr ? params.turns.group : 1;
  }
  TESSERA_DEVICE void step() {
    if (params_.turns.terms != nullptr) {
      at_.second = !at_.second && params_.turns.paired != 0 && 2 * at_.item + 1 < lines();
      if (at_.second || ++at_.chunk < params_.turns.chunks) {
        return;
      }
      at_.chunk = 0;
    }
    at_.item += static_cast<int>(gridDim.x) / group_of(params_);
  }
  // From the end of a head that is visited backwards.
  TESSERA_DEVICE int chunk_tile() const {
    return at_.chunk * params_.turns.group + static_cast<int>(blockIdx.x) % params_.turns.group;
  }
  TESSERA_DEVICE int key_heads() const { return params_.batch.heads_q / params_.batch.group_size; }
  TESSERA_DEVICE int lines() const { return params_.batch.count * key_heads(); }

  const BackwardParams& params_;
  JointItem at_;
};

// The cursor of role joint. Where terms are added in any order, blocks go round all the same, so that their additions rarely meet.
struct JointVisits {
  int head_, end_head_;
  VisitRange range_;
  tile::TileRange chunk_;  // the tiles of keys that the group works on at the same time
  int begin_ = 0;
  int start_ = 0;
};
template <BackwardConfig kConfig>
class JointTilesOfKeys : JointVisits {
 public:
  using State = JointVisits;

  TESSERA_DEVICE JointTilesOfKeys(const BackwardParams& params, const OwnedTile& owned, const State& state)
      : State(state), params_(params), owned_(owned) {}
  TESSERA_DEVICE JointTilesOfKeys(const BackwardParams& params, const OwnedTile& owned)
      : State{}, params_(params), owned_(owned) {
    head_ = owned.head * params.batch.group_size;
    end_head_ = head_ + params.batch.group_size;
    if (params.is_listed == 0) {
      const tile::TileRange range =
          band_tiles_of_queries(params, owned.sequence, owned.tile, kConfig.tile_q, kConfig.tile_k);
      range_ = {nullptr, range.begin, range.end};
      begin_ = range.begin;
      chunk_ = chunk();
      if (goes_round() && chunk_.size() > 0) {
        start_ = (owned.tile - chunk_.begin) * (range.end - range.begin) / chunk_.size();
      }
    }
    find();
  }
  TESSERA_DEVICE const State& state() const { return *this; }
  TESSERA_DEVICE bool valid() const { return head_ < end_head_; }
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned_.sequence; }
  TESSERA_DEVICE int index() const { return owned_.index; }
  TESSERA_DEVICE int head() const { return head_; }
  TESSERA_DEVICE int query_tile() const {
    if (params_.is_listed != 0) {
      return range_.tile();
    }
    if (owned_.chain) {
      return range_.end - 1 - (range_.at - begin_);
    }
    const int at = range_.at + start_;
    return at >= range_.end ? at - range_.end + begin_ : at;
  }
  TESSERA_DEVICE int key_tile() const { return owned_.tile; }
  TESSERA_DEVICE int bits() const { return range_.bits(); }
  TESSERA_DEVICE void advance() {
    ++range_.at;
    if (!range_.valid()) {
      ++head_;
      range_.at = begin_;
      find();
    }
  }

  // How many terms are added to dQ of the tile of queries before the one of this tile of keys.
  TESSERA_DEVICE int turn(int query_tile) const {
    if (goes_round()) {
      const int count = range_.end - begin_;
      const int started = min(tile::ceil_div((query_tile - begin_ + 1) * chunk_.size(), count), chunk_.size());
      const int turn = started - 1 - (owned_.tile - chunk_.begin);
      return chunk_.begin + (turn < 0 ? turn + chunk_.size() : turn);
    }
    const tile::TileRange visitors =
        band_tiles_of_keys(params_, owned_.sequence, query_tile, kConfig.tile_q, kConfig.tile_k);
    if (owned_.chain) {
      return max(visitors.end - max(chunk_.end, visitors.begin), 0) + owned_.tile - max(visitors.begin, chunk_.begin);
    }
    return max(min(chunk_.begin, visitors.end) - visitors.begin, 0) + min(visitors.end, chunk_.end) - 1 - owned_.tile;
  }

 private:
  TESSERA_DEVICE bool goes_round() const { return params_.turns.group != 0 && params_.turns.paired == 0; }

  TESSERA_DEVICE tile::TileRange chunk() const {
    const int group = max(params_.turns.group, 1);
    const int tiles = params_.tiles_of_head;
    if (owned_.chain) {
      const int end = tiles - (tiles - 1 - owned_.tile) / group * group;
      return {max(end - group, 0), end};
    }
    const int first = owned_.tile / group * group;
    return {first, min(first + group, tiles)};
  }

  TESSERA_DEVICE void find() {
    for (; head_ < end_head_; ++head_) {
      if (params_.is_listed != 0) {
        range_ = listed_range(params_.listed.columns, listed_row(params_.listed, params_.listed.column_tiles,
                                                                 owned_.index, head_, owned_.tile));
        begin_ = range_.at;
      }
      if (range_.valid()) {
        return;
      }
    }
  }

  const BackwardParams& params_;
  const OwnedTile& owned_;
};

}  // namespace tessera::sm80
