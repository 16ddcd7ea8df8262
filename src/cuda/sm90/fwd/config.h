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
  static constexpr int kSharedAlignment = 1024;  // swizzled sub-tiles repeat after so many bytes

  // Independent kernels in one block, each with warpgroups, buffers and tiles of its own: small tiles leave room for two, which
  // keep four warps at each scheduler and overlap each other's starts and ends.
  constexpr int twins() const { return head_dim == 64 && tile_k == 64 ? 2 : 1; }
  constexpr int tile_q() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (twins() * warpgroups + 1); }
  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int query_bytes() const { return 64 * row_bytes(); }  // of a warpgroup
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  // The register file holds 65,536: what the producer's threads need, the rest for the consumers.
  constexpr int producer_registers() const { return twins() == 2 || warpgroups > 2 ? 32 : 40; }
  constexpr int consumer_registers() const { return twins() == 2 ? 112 : warpgroups == 2 ? 232 : 160; }

  // Of one twin.
  constexpr int most_shared_bytes() const { return kMostSharedBytes / twins(); }
  constexpr int shared_bytes(int slots, bool output) const {
    const int bytes = (slots + (output ? warpgroups : 0)) * query_bytes() + 2 * stages * key_bytes() +
                      8 * (4 * stages + 2 * slots + 2 * kTileSlots + 1) + 64 * kTileSlots + 8 * stages;
    return (bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  }
  constexpr bool fits(int slots, bool output) const { return shared_bytes(slots, output) <= most_shared_bytes(); }
  // A buffer of its own lets the copy engine write O. It is worth more than room for the next queries of all warpgroups.
  constexpr bool stages_output() const { return fits(warpgroups + 1, true); }
  // Places for 64 queries, which the warpgroups take in turn: those in excess hold queries of the next tile, whose load overlaps
  // all of this one.
  constexpr int query_slots() const {
    int slots = 2 * warpgroups;
    while (slots > warpgroups && !fits(slots, stages_output())) {
      --slots;
    }
    return slots;
  }
  constexpr int shared_bytes() const { return shared_bytes(query_slots(), stages_output()); }
};

// How tiles of queries are handed out.
struct TileOrder {
  std::int32_t tiles;          // in all
  std::int32_t tiles_of_head;  // of one head of the batch (all sequences)
  std::int32_t section_heads;  // > 0: longest first within sections of so many (batch, head) pairs
  std::int32_t* counter;       // of tiles handed out, beginning at 0; null: tiles are dealt in turn
  // Or dealt by the plan: entry r * blocks + b (twins are blocks of their own) is the tile of block b in round r, -1 none.
  const std::int32_t* dealt;
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
  // scale_log2 tanh(score_scale s) / s in powers of s^2, for products up to `series_limit`.
  float softcap_series[3];
  float series_limit;
  ScoreParams score;
  Listed listed;  // what tiles of queries visit, under a listed mask
};

}  // namespace tessera::sm90
