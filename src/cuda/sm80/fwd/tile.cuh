// Which tile of queries a block computes, and which key tiles that visits.
#pragma once

#include "cuda/sm80/fwd/config.h"
#include "cuda/tile/element_mask.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm80 {

struct QueryTile {
  int sequence_index, head;
  int first_query;
  int part;  // of V's columns
  tile::Sequence sequence;
};

TESSERA_DEVICE QueryTile query_tile(const ForwardParams& params, int tile_q) {
  const ForwardOrder& order = params.order;
  QueryTile work;
  work.part = static_cast<int>(blockIdx.x) / order.tiles;
  const int index = static_cast<int>(blockIdx.x) % order.tiles;
  int line = index / order.tiles_of_head;  // of (batch, head) pairs, or of heads
  int tile = index % order.tiles_of_head;
  if (order.section_heads > 0) {
    const int lines = order.tiles / order.tiles_of_head;
    const int first = line / order.section_heads * order.section_heads;
    const int count = min(order.section_heads, lines - first);
    const int within = index - first * order.tiles_of_head;
    line = first + within % count;
    tile = order.tiles_of_head - 1 - within / count;
  }
  if (params.batch.sequences == nullptr) {
    work.sequence_index = line / params.batch.heads_q;
    work.head = line % params.batch.heads_q;
  } else {
    work.sequence_index = tile::owner_of_tile(params.batch, tile);
    work.head = line;
    tile -= params.batch.sequences[work.sequence_index].first_tile;
  }
  work.sequence = tile::sequence_of(params.batch, work.sequence_index);
  work.first_query = tile * tile_q;
  return work;
}

// The key tiles of a tile of queries, from the last to the first: computed from the band, or listed.
class KeyTiles {
 public:
  TESSERA_DEVICE KeyTiles(const ForwardParams& params, const QueryTile& work, const tile::Bounds& bounds, int tile_q,
                          int tile_k)
      : g_visits_(nullptr) {
    if (params.is_listed != 0) {
      const Listed& listed = params.listed;
      const int row = listed_row(listed, listed.row_tiles, work.sequence_index, work.head, work.first_query / tile_q);
      const int begin = listed.rows.begin[row];
      count_ = listed.rows.begin[row + 1] - begin;
      g_visits_ = listed.rows.visits + begin;
    } else {
      const tile::TileRange range =
          tile::key_tiles<MaskKind::window>(bounds, work.sequence, work.first_query, tile_q, tile_k);
      first_ = range.begin;
      count_ = range.size();
    }
  }

  TESSERA_DEVICE int count() const { return count_; }
  TESSERA_DEVICE bool listed() const { return g_visits_ != nullptr; }
  // Visit n from the end, n < count(). Without a list `bits` says nothing.
  TESSERA_DEVICE ListedVisit visit(int n) const {
    return listed() ? g_visits_[count_ - 1 - n] : ListedVisit{first_ + count_ - 1 - n, -1};
  }

 private:
  const ListedVisit* g_visits_;
  int first_ = 0;
  int count_;
};

}  // namespace tessera::sm80
