// The tile configurations of the backward kernels for wide heads: tiles, stages, registers and the plans of shared memory.
#pragma once

#include "cuda/sm90/bwd/config.h"
#include "cuda/sm90/fwd/config.h"

namespace tessera::sm90 {

// dK and dV of a tile of keys. dK and dV of 64 keys and 256 columns fill 128 registers of every consumer thread.
struct BackwardKeysConfig {
  int head_dim;  // columns of Q, K, V and dO that are computed
  int tile_q;
  int tile_k;
  int stages;  // of Q and of dO

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kSubTileColumns = 64;
  static constexpr int kTileSlots = 2;
  static constexpr int kWeightBuffers = 2;

  // What tickets and visits ask about tiles.
  constexpr BackwardConfig tiles() const { return {head_dim, tile_q, tile_k, stages}; }

  constexpr int sub_tiles() const { return head_dim / kSubTileColumns; }
  // Columns of K and V that consumers keep in registers, as many as are free beside dK and dV and what a score program takes.
  constexpr int held_columns(bool program) const { return head_dim <= 192 ? head_dim : program ? 32 : 96; }
  constexpr int row_bytes() const { return head_dim * 2; }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  constexpr int query_bytes() const { return tile_q * row_bytes(); }
  constexpr int statistics_bytes() const { return tile_q * 4; }
  constexpr int weight_bytes() const { return tile_q * tile_k * 2; }  // P in 16 bits

  constexpr int barriers() const { return 4 + 4 * stages + 2 * kWeightBuffers + 2 * kTileSlots; }
  constexpr int shared_bytes() const {
    return 2 * key_bytes() + 2 * stages * (query_bytes() + statistics_bytes()) + kWeightBuffers * weight_bytes() +
           64 * kTileSlots + 8 * barriers();
  }
};

// dQ of a tile of queries, 64 of them for each consumer warpgroup.
struct BackwardQueriesConfig {
  int head_dim;
  int tile_q;
  int tile_k;
  int key_stages;
  int value_stages;

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kSubTileColumns = 64;
  static constexpr int kTileSlots = 2;

  // Tiles are handed out as those of the forward kernel are.
  constexpr ForwardConfig tiles() const { return {head_dim, tile_q / 64, tile_k, key_stages}; }

  constexpr int sub_tiles() const { return head_dim / kSubTileColumns; }
  constexpr int row_bytes() const { return head_dim * 2; }
  constexpr int half_bytes() const { return 64 * row_bytes(); }  // of a tile of Q or dO
  constexpr int key_bytes() const { return tile_k * row_bytes(); }

  constexpr int barriers() const { return 4 * kWarpgroups + 2 * (key_stages + value_stages) + 2 * kTileSlots + 1; }
  constexpr int shared_bytes() const {
    return 2 * kWarpgroups * half_bytes() + (key_stages + value_stages) * key_bytes() + 64 * kTileSlots +
           8 * barriers();
  }
};

struct BackwardQueriesParams {
  TensorMap q, k, v, dout;  // boxes of Q and dO have 64 rows
  void* dq;
  Strides dq_strides;
  const float* lse_log2;  // as in BackwardParams
  const float* delta;
  Batch batch;
  Band band;
  TileOrder order;
  std::int32_t line_rows;
  std::int32_t dim_qk;
  float scale, scale_log2, score_scale;  // as in BackwardParams
  ScoreParams score;
};

}  // namespace tessera::sm90
