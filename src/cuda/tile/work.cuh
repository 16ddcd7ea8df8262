// Bounds of one sequence, and the key tiles that a tile of queries visits (and the reverse).
#pragma once

#include "cuda/ptx/device.cuh"
#include "cuda/tile/work.h"

namespace tessera::tile {

struct Sequence {
  int batch;  // on the batch axis of the tensors
  int query_row, key_row;
  int queries, keys, stored_keys;
  int first_line;
};

TESSERA_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

TESSERA_DEVICE Sequence sequence_of(const Batch& batch, int index) {
  if (batch.sequences == nullptr) {
    return {index, 0, 0, batch.queries, batch.keys, batch.keys, 0};
  }
  const SequenceEntry entry = batch.sequences[index];
  return {batch.ragged ? 0 : index, entry.query_row, entry.key_row, entry.queries, entry.keys,
          entry.stored_keys,        entry.first_line};
}

// The sequence that owns tile `tile` of one head: the last whose first tile is not behind it.
TESSERA_DEVICE int owner_of_tile(const Batch& batch, int tile) {
  int low = 0;
  int high = batch.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.sequences[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The band with the diagonal of its sequence in it.
struct Bounds {
  int lower, upper;
};

TESSERA_DEVICE Bounds bounds_of(const Band& band, const Sequence& sequence) {
  const int shift = band.bottom_right ? sequence.keys - sequence.queries : 0;
  return {band.lower + shift, band.upper + shift};
}

// Tiles [begin, end); none when begin == end.
struct TileRange {
  int begin, end;
  TESSERA_DEVICE int size() const { return end - begin; }
};

// Those that hold a position of [first, last] within [0, count).
TESSERA_DEVICE TileRange tiles_between(int first, int last, int count, int tile) {
  const int lowest = max(first, 0);
  const int highest = min(last, count - 1);
  return highest < lowest ? TileRange{0, 0} : TileRange{lowest / tile, highest / tile + 1};
}

// The key tiles that a tile of queries visits, and the tiles of queries that visit a key tile: each is the transpose of the
// other.
template <MaskKind kMask>
TESSERA_DEVICE TileRange key_tiles(const Bounds& bounds, const Sequence& sequence, int first_query, int tile_q,
                                   int tile_k) {
  const int last_query = min(first_query + tile_q, sequence.queries) - 1;
  const int first = kMask == MaskKind::window ? first_query + bounds.lower : 0;
  const int last = kMask == MaskKind::dense ? sequence.keys - 1 : last_query + bounds.upper;
  return tiles_between(first, last, sequence.keys, tile_k);
}

template <MaskKind kMask>
TESSERA_DEVICE TileRange query_tiles(const Bounds& bounds, const Sequence& sequence, int first_key, int tile_q,
                                     int tile_k) {
  const int last_key = min(first_key + tile_k, sequence.keys) - 1;
  if (last_key < first_key) {
    return {0, 0};
  }
  const int first = kMask == MaskKind::dense ? 0 : first_key - bounds.upper;
  const int last = kMask == MaskKind::window ? last_key - bounds.lower : sequence.queries - 1;
  return tiles_between(first, last, sequence.queries, tile_q);
}

}  // namespace tessera::tile
