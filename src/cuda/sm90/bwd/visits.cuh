// In which order a tile of keys visits the tiles of queries, and whose turn it is to add to dQ of each.
//
// A block may wait only for blocks that are sure to run. All blocks of a launch do (it is cooperative), each with one tile of
// keys at a time and the next one in its hands. The orders:
// - together: a group of blocks works on a chunk of the tiles of keys of a head at the same time, one tile each. Terms are
//   added in the order in which they come up when all start together, so that nobody waits: under a dense mask blocks start at
//   different tiles of queries and go round; otherwise everyone starts at its own first tile of queries, which later keys reach
//   first. Chunks follow each other.
// - chain: terms are added in ascending order of keys, and tiles of queries are visited from the last. Where tiles of keys are
//   handed out in that order, a block waits only for tiles that were handed out before its own. Chunks are in descending order.
// Under a causal mask tiles of keys differ in length. A group of blocks then takes two heads: block c has tile of keys c of
// the first (together) and the c-th from the end of the second (chain), which takes every block the same time; in both it
// waits for blocks of higher number alone, and on any tile of queries blocks follow each other at a distance.
#pragma once

#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm90 {

template <BackwardConfig kConfig, MaskKind kMask>
class BackwardVisits {
 public:
  TESSERA_DEVICE BackwardVisits(const BackwardTile& work, const BackwardOrder& order)
      : work_(work), key_tile_(work.first_key / kConfig.tile_k) {
    const int key_tiles = tile::ceil_div(work.stored_keys, kConfig.tile_k);
    if (order.group == 0) {
      chunk_ = {0, key_tiles};
    } else if (work.dq_order == DqOrder::together) {
      const int first = key_tile_ / order.group * order.group;
      chunk_ = {first, min(first + order.group, key_tiles)};
    } else {
      const int end = key_tiles - (key_tiles - 1 - key_tile_) / order.group * order.group;
      chunk_ = {max(end - order.group, 0), end};
    }
    if (goes_round() && count() > 0) {
      start_ = (key_tile_ - chunk_.begin) * count() / chunk_.size();
    }
  }

  TESSERA_DEVICE int count() const { return work_.end - work_.begin; }

  // The tile of queries of step `step`, below count().
  TESSERA_DEVICE int at(int step) const {
    if (work_.dq_order == DqOrder::chain) {
      return work_.end - 1 - step;
    }
    const int index = start_ + step;
    return work_.begin + (index >= count() ? index - count() : index);
  }

  // How many terms are added to dQ of this tile of queries before the one of this tile of keys.
  TESSERA_DEVICE int turn(int query_tile) const {
    if (goes_round()) {
      const int started = min(tile::ceil_div((query_tile + 1) * chunk_.size(), count()), chunk_.size());
      const int turn = started - 1 - (key_tile_ - chunk_.begin);
      return chunk_.begin + (turn < 0 ? turn + chunk_.size() : turn);
    }
    tile::Sequence sequence{};
    sequence.queries = work_.queries;
    sequence.keys = work_.keys;
    const tile::TileRange visitors = tile::key_tiles<kMask>(
        {work_.lower, work_.upper}, sequence, query_tile * kConfig.tile_q, kConfig.tile_q, kConfig.tile_k);
    if (work_.dq_order == DqOrder::chain) {
      return max(visitors.end - max(chunk_.end, visitors.begin), 0) + key_tile_ - max(visitors.begin, chunk_.begin);
    }
    return max(min(chunk_.begin, visitors.end) - visitors.begin, 0) + min(visitors.end, chunk_.end) - 1 - key_tile_;
  }

 private:
  TESSERA_DEVICE bool goes_round() const { return kMask == MaskKind::dense && work_.dq_order == DqOrder::together; }

  const BackwardTile& work_;
  int key_tile_;
  tile::TileRange chunk_;  // of tiles of keys
  int start_ = 0;
};

}  // namespace tessera::sm90
