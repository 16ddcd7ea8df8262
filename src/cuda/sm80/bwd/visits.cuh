// The tile that a block owns, and one after the other the tiles that it is combined with.
//
// A cursor stands on one pair of tiles: valid(), sequence(), index() (of the sequence), head() (of the queries), query_tile(),
// key_tile(), bits() (of a listed visit, else -1) and advance(). The loader runs ahead of the products, which keep a VisitStep of
// where it was.
#pragma once

#include "cuda/sm80/bwd/config.h"
#include "cuda/tile/work.cuh"

namespace tessera::sm80 {

// A tile of keys or of queries of one key head or query head.
struct OwnedTile {
  tile::Sequence sequence;
  int index;  // of the sequence
  int head;   // of the keys or of the queries
  int tile;
  int chunk;   // of columns
  bool chain;  // role joint, in turns: see order.cuh
};

TESSERA_DEVICE tile::TileRange band_tiles_of_keys(const BackwardParams& params, const tile::Sequence& sequence,
                                                  int query_tile, int tile_q, int tile_k) {
  return tile::key_tiles<MaskKind::window>(tile::bounds_of(params.band, sequence), sequence, query_tile * tile_q,
                                           tile_q, tile_k);
}
TESSERA_DEVICE tile::TileRange band_tiles_of_queries(const BackwardParams& params, const tile::Sequence& sequence,
                                                     int key_tile, int tile_q, int tile_k) {
  return tile::query_tiles<MaskKind::window>(tile::bounds_of(params.band, sequence), sequence, key_tile * tile_k,
                                             tile_q, tile_k);
}

// Items are numbered by sections of lines (heads of sequences, or heads where sequences differ), in a section by tiles, of a
// tile by chunks of columns: what runs at the same time shares its other operand in the L2 cache, and under a causal mask the
// first tiles of keys, and the last of queries, take longest.
template <BackwardConfig kConfig, BackwardRole kRole>
TESSERA_DEVICE OwnedTile owned_tile(const BackwardParams& params, int item) {
  constexpr bool kOfQueries = kRole == BackwardRole::queries;
  const Batch& batch = params.batch;
  const int heads = kOfQueries ? batch.heads_q : batch.heads_q / batch.group_size;
  const bool alike = batch.sequences == nullptr;
  const int lines = (alike ? batch.count : 1) * heads;
  OwnedTile owned{};
  owned.chunk = kConfig.resident != 0 ? 0 : item % params.chunks;
  const int index = kConfig.resident != 0 ? item : item / params.chunks;
  const int section_tiles = params.section_heads * params.tiles_of_head;
  const int first_line = index / section_tiles * params.section_heads;
  const int rest = index % section_tiles;
  const int width = min(params.section_heads, lines - first_line);
  const int line = first_line + rest % width;
  const int tile = kOfQueries ? params.tiles_of_head - 1 - rest / width : rest / width;
  owned.index = alike ? line / heads : tile::owner_of_tile(batch, tile);
  owned.head = alike ? line % heads : line;
  owned.tile = alike ? tile : tile - batch.sequences[owned.index].first_tile;
  owned.sequence = tile::sequence_of(batch, owned.index);
  return owned;
}

// What the products keep of a cursor.
struct VisitStep {
  const OwnedTile* owned;
  int head_, query_tile_, key_tile_, bits_;

  template <class Cursor>
  TESSERA_DEVICE VisitStep(const Cursor& at, const OwnedTile& tile)
      : owned(&tile), head_(at.head()), query_tile_(at.query_tile()), key_tile_(at.key_tile()), bits_(at.bits()) {}
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned->sequence; }
  TESSERA_DEVICE int index() const { return owned->index; }
  TESSERA_DEVICE int head() const { return head_; }
  TESSERA_DEVICE int query_tile() const { return query_tile_; }
  TESSERA_DEVICE int key_tile() const { return key_tile_; }
  TESSERA_DEVICE int bits() const { return bits_; }
};

// Tiles that a list or a band names.
struct VisitRange {
  const ListedVisit* visits;  // null: every number
  int at, end;
  TESSERA_DEVICE bool valid() const { return at < end; }
  TESSERA_DEVICE int tile() const { return visits == nullptr ? at : visits[at].tile; }
  TESSERA_DEVICE int bits() const { return visits == nullptr ? -1 : visits[at].bits; }
};

TESSERA_DEVICE VisitRange listed_range(const ListedRows& rows, int row) {
  return {rows.visits, rows.begin[row], rows.begin[row + 1]};
}

// The tiles of queries that see a tile of keys, for each head of the group.
struct QueryVisits {
  int head_, end_head_;
  VisitRange range_;
};
template <BackwardConfig kConfig>
class QueryTilesOfKeys : QueryVisits {
 public:
  using State = QueryVisits;

  TESSERA_DEVICE QueryTilesOfKeys(const BackwardParams& params, const OwnedTile& owned, const State& state)
      : State(state), params_(params), owned_(owned) {}
  TESSERA_DEVICE QueryTilesOfKeys(const BackwardParams& params, const OwnedTile& owned)
      : State{}, params_(params), owned_(owned) {
    head_ = owned.head * params.batch.group_size;
    end_head_ = head_ + params.batch.group_size;
    find();
  }
  TESSERA_DEVICE const State& state() const { return *this; }
  TESSERA_DEVICE bool valid() const { return head_ < end_head_; }
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned_.sequence; }
  TESSERA_DEVICE int index() const { return owned_.index; }
  TESSERA_DEVICE int head() const { return head_; }
  TESSERA_DEVICE int query_tile() const { return range_.tile(); }
  TESSERA_DEVICE int key_tile() const { return owned_.tile; }
  TESSERA_DEVICE int bits() const { return range_.bits(); }
  TESSERA_DEVICE void advance() {
    ++range_.at;
    if (!range_.valid()) {
      ++head_;
      find();
    }
  }

 private:
  TESSERA_DEVICE void find() {
    for (; head_ < end_head_; ++head_) {
      range_ = range_of_head();
      if (range_.valid()) {
        return;
      }
    }
  }
  TESSERA_DEVICE VisitRange range_of_head() const {
    if (params_.is_listed != 0) {
      return listed_range(params_.listed.columns,
                          listed_row(params_.listed, params_.listed.column_tiles, owned_.index, head_, owned_.tile));
    }
    const tile::TileRange range =
        band_tiles_of_queries(params_, owned_.sequence, owned_.tile, kConfig.tile_q, kConfig.tile_k);
    return {nullptr, range.begin, range.end};
  }

  const BackwardParams& params_;
  const OwnedTile& owned_;
};

// The tiles of keys that a tile of queries sees.
template <BackwardConfig kConfig>
class KeyTilesOfQueries {
 public:
  using State = VisitRange;

  TESSERA_DEVICE KeyTilesOfQueries(const BackwardParams& /*params*/, const OwnedTile& owned, const State& state)
      : owned_(owned), range_(state) {}
  TESSERA_DEVICE KeyTilesOfQueries(const BackwardParams& params, const OwnedTile& owned) : owned_(owned) {
    if (params.is_listed != 0) {
      range_ = listed_range(params.listed.rows,
                            listed_row(params.listed, params.listed.row_tiles, owned.index, owned.head, owned.tile));
    } else {
      const tile::TileRange range =
          band_tiles_of_keys(params, owned.sequence, owned.tile, kConfig.tile_q, kConfig.tile_k);
      range_ = {nullptr, range.begin, range.end};
    }
  }
  TESSERA_DEVICE const State& state() const { return range_; }
  TESSERA_DEVICE bool valid() const { return range_.valid(); }
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned_.sequence; }
  TESSERA_DEVICE int index() const { return owned_.index; }
  TESSERA_DEVICE int head() const { return owned_.head; }
  TESSERA_DEVICE int query_tile() const { return owned_.tile; }
  TESSERA_DEVICE int key_tile() const { return range_.tile(); }
  TESSERA_DEVICE int bits() const { return range_.bits(); }
  TESSERA_DEVICE void advance() { ++range_.at; }

 private:
  const OwnedTile& owned_;
  VisitRange range_;
};

// The pairs of tiles that are summed into a tile of dbias: [begin, end) along batch, head, tiles of queries and of keys, the
// last of them fastest.
template <BackwardConfig kConfig>
class TilesOfBias {
 public:
  TESSERA_DEVICE TilesOfBias(const BackwardParams& params, const OwnedTile& /*owned*/) : params_(&params) {
    const BackwardBias& bias = params.dbias;
    const int extents[4] = {bias.batches, bias.heads, bias.query_tiles, bias.key_tiles};
    int rest = static_cast<int>(blockIdx.x);
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) {
      const int part = rest % bias.parts[axis];
      rest /= bias.parts[axis];
      begin_[axis] = bias.parts[axis] == 1 ? 0 : part;
      end_[axis] = bias.parts[axis] == 1 ? extents[axis] : part + 1;
      at_[axis] = begin_[axis];
    }
    sequence_ = tile::sequence_of(params.batch, at_[0]);
    find();
  }
  TESSERA_DEVICE TilesOfBias(const TilesOfBias& at, const OwnedTile& /*owned*/) : TilesOfBias(at) {}
  TESSERA_DEVICE bool valid() const { return at_[0] < end_[0]; }
  TESSERA_DEVICE const tile::Sequence& sequence() const { return sequence_; }
  TESSERA_DEVICE int index() const { return at_[0]; }
  TESSERA_DEVICE int head() const { return at_[1]; }
  TESSERA_DEVICE int query_tile() const { return at_[2]; }
  TESSERA_DEVICE int key_tile() const { return at_[3]; }
  TESSERA_DEVICE int bits() const { return bits_; }
  TESSERA_DEVICE void advance() {
    step();
    find();
  }
  // Of the first element of the tile that is owned; 0 along an extent that is summed.
  TESSERA_DEVICE int begin(int axis) const { return begin_[axis]; }

 private:
  TESSERA_DEVICE void step() {
    if (++at_[3] < end_[3]) {
      return;
    }
    at_[3] = begin_[3];
    if (++at_[2] < end_[2]) {
      return;
    }
    at_[2] = begin_[2];
    if (++at_[1] < end_[1]) {
      return;
    }
    at_[1] = begin_[1];
    if (++at_[0] < end_[0]) {
      sequence_ = tile::sequence_of(params_->batch, at_[0]);
    }
  }
  TESSERA_DEVICE void find() {
    while (valid() && !visited()) {
      step();
    }
  }
  TESSERA_DEVICE bool visited() {
    if (at_[2] * kConfig.tile_q >= sequence_.queries || at_[3] * kConfig.tile_k >= sequence_.keys) {
      return false;
    }
    if (params_->is_listed == 0) {
      const tile::TileRange range = band_tiles_of_keys(*params_, sequence_, at_[2], kConfig.tile_q, kConfig.tile_k);
      return at_[3] >= range.begin && at_[3] < range.end;
    }
    const VisitRange row = listed_range(params_->listed.rows,
                                        listed_row(params_->listed, params_->listed.row_tiles, at_[0], at_[1], at_[2]));
    int low = row.at;
    int high = row.end;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (row.visits[middle].tile < at_[3]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == row.end || row.visits[low].tile != at_[3]) {
      return false;
    }
    bits_ = row.visits[low].bits;
    return true;
  }

  const BackwardParams* params_;
  int begin_[4], end_[4], at_[4];
  int bits_ = -1;
  tile::Sequence sequence_;
};

}  // namespace tessera::sm80
