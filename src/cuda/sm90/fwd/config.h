// The tile configuration of the forward kernel: tiles, stages, registers and the plan of shared memory.
#pragma once

#include "cuda/tensor_map.h"
#include "cuda/tile/work.h"

namespace tessera::sm90 {

struct ForwardConfig {
  int head_dim;    // columns of Q, K, V and O that are computed
  int warpgroups;  // consumers of 64 queries each
  int tile_k;
  int stages;  // of K and V

  static constexpr int kSubTileColumns = 64;
  static constexpr int kTileSlots = 2;
  static constexpr int kMostSharedBytes = 232448;

  constexpr int tile_q() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (warpgroups + 1); }
  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int query_bytes() const { return tile_q() * row_bytes(); }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  // The register file holds 65,536: what the producer's threads need, the rest for the consumers.
  constexpr int producer_registers() const { return warpgroups == 2 ? 40 : 32; }
  constexpr int consumer_registers() const { return warpgroups == 2 ? 232 : 160; }

  constexpr int barriers() const { return 4 * stages + 4 * kTileSlots + 1; }
  // With so many tiles of queries beside K and V.
  constexpr int shared_bytes(int query_tiles) const {
    return 1024 + query_tiles * query_bytes() + 2 * stages * key_bytes() + 8 * barriers() + 64 * kTileSlots;
  }
  // A second buffer of queries lets the next tile's load overlap all of this one, and a buffer of its own lets the copy engine
  // write O.
  constexpr int query_buffers() const { return shared_bytes(2) <= kMostSharedBytes ? 2 : 1; }
  constexpr bool stages_output() const { return shared_bytes(query_buffers() + 1) <= kMostSharedBytes; }
  constexpr int shared_bytes() const { return shared_bytes(query_buffers() + (stages_output() ? 1 : 0)); }
};

// How tiles of queries are handed out.
struct TileOrder {
  std::int32_t tiles;          // in all
  std::int32_t tiles_of_head;  // of one head of the batch (all sequences)
  std::int32_t section_heads;  // > 0: longest first within sections of so many (batch, head) pairs
  std::int32_t* counter;       // of tiles handed out, beginning at 0; null: tiles are dealt in turn
};

struct ForwardParams {
  TensorMap q, k, v;
  TensorMap out_map;  // of 64 rows
  void* out;
  float* lse;  // or null
  Strides out_strides, lse_strides;
  Batch batch;
  Band band;
  TileOrder order;
  float scale_log2;  // of the scores, times log2(e)
  std::int32_t dim_v;
};

}  // namespace tessera::sm90
