// The tile configuration of the forward kernel: tiles, stages, registers and the plan of shared memory.
#pragma once

#include "cuda/tensor_map.h"
#include "cuda/tile/listed.h"
#include "cuda/tile/program.h"
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

  // Independent kernels in one block, each with warpgroups, buffers and tiles of its own: small tiles leave room for two, which
  // keep four warps at each scheduler and overlap each other's starts and ends.
  constexpr int twins() const { return head_dim == 64 && tile_k == 64 ? 2 : 1; }
  constexpr int tile_q() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (twins() * warpgroups + 1); }
  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int query_bytes() const { return tile_q() * row_bytes(); }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  // The register file holds 65,536: what the producer's threads need, the rest for the consumers.
  constexpr int producer_registers() const { return twins() == 2 || warpgroups > 2 ? 32 : 40; }
  constexpr int consumer_registers() const { return twins() == 2 ? 112 : warpgroups == 2 ? 232 : 160; }

  constexpr int barriers() const { return 4 * stages + 4 * kTileSlots + 1; }
  // Of one twin.
  constexpr int most_shared_bytes() const { return kMostSharedBytes / twins(); }
  // With so many tiles of queries beside K and V.
  constexpr int shared_bytes(int query_tiles) const {
    return 1024 + query_tiles * query_bytes() + 2 * stages * key_bytes() + 8 * barriers() + 64 * kTileSlots +
           8 * stages;
  }
  // A second buffer of queries lets the next tile's load overlap all of this one, and a buffer of its own lets the copy engine
  // write O.
  constexpr int query_buffers() const { return shared_bytes(2) <= most_shared_bytes() ? 2 : 1; }
  constexpr bool stages_output() const { return shared_bytes(query_buffers() + 1) <= most_shared_bytes(); }
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
  float scale_log2;  // of the products or, where there is a softcap, of its tanh; times log2(e)
  std::int32_t dim_v;
  float score_scale;  // of the products in the tanh
  // tanh(score_scale s) / s in powers of s^2, for products up to `series_limit`.
  float tanh_series[4];
  float series_limit;
  ScoreParams score;
  // Of listed masks: what tiles of queries visit, and the tiles in the order in which they are handed out (-1: none).
  Listed listed;
  const std::int32_t* listed_order;
};

}  // namespace tessera::sm90
