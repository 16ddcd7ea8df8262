// In which order a tile of keys visits the tiles of queries, and whose turn it is to add to dQ of each: see order.h.
#pragma once

#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm90 {

// Reads shared memory, since consumers have no register left.
template <MaskKind kMask>
class BackwardVisits {
 public:
  TESSERA_DEVICE explicit BackwardVisits(const BackwardTile& work) : work_(work) {}

  TESSERA_DEVICE int count() const { return work_.end - work_.begin; }
  // Where one of `members` query heads starts. Only tiles under a causal mask are paired; others all start where the tile does.
  TESSERA_DEVICE int start(int member, int members) const {
    return kMask == MaskKind::causal ? KeyTileVisits::start(work_.start, member, members) : 0;
  }
  // The tile of queries of step `step`, below count(), of a query head.
  TESSERA_DEVICE int at(int start, int step) const {
    return KeyTileVisits::at({work_.begin, work_.end}, kMask == MaskKind::causal ? start : work_.start, step);
  }

 private:
  const BackwardTile& work_;
};

template <BackwardConfig kConfig, MaskKind kMask>
class BackwardTurns {
 public:
  TESSERA_DEVICE BackwardTurns(const BackwardTile& work, const BackwardOrder& order)
      : work_(work), visits_(visits(work, KeyTileVisits::way_of(work.start), order)) {}

  TESSERA_DEVICE static KeyTileVisits visits(const BackwardTile& work, Way way, const BackwardOrder& order) {
    return {work.first_key / kConfig.tile_k,
            tile::ceil_div(work.stored_keys, kConfig.tile_k),
            {work.begin, work.end},
            way,
            kMask == MaskKind::dense,
            kMask == MaskKind::causal,
            order};
  }

  // How many terms are added to dQ of this tile of queries before the one of this tile of keys.
  TESSERA_DEVICE int of(int query_tile) const {
    tile::Sequence sequence{};
    sequence.queries = work_.queries;
    sequence.keys = work_.keys;
    const tile::TileRange visitors = tile::key_tiles<kMask>(
        {work_.lower, work_.upper}, sequence, query_tile * kConfig.tile_q, kConfig.tile_q, kConfig.tile_k);
    return visits_.turn(query_tile, {visitors.begin, visitors.end});
  }

 private:
  const BackwardTile& work_;
  KeyTileVisits visits_;
};

}  // namespace tessera::sm90
