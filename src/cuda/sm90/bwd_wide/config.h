// The tile configuration of the backward kernel for wide heads: stages, registers and the plan of shared memory.
#pragma once

#include "cuda/sm90/bwd/config.h"

namespace tessera::sm90 {

// 64 keys a block: dK and dV of 256 columns fill 128 registers of every consumer thread.
struct BackwardWideConfig {
  int head_dim;  // columns of Q, K, V and dO that are computed
  int tile_q;
  int tile_k;
  int stages;  // of Q, and of dO where they fit

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = 40;  // in all three times 168
  static constexpr int kWeightRegisters = 240;
  static constexpr int kScoreGradientRegisters = 224;
  static constexpr int kSubTileColumns = 64;
  static constexpr int kTileSlots = 2;
  static constexpr int kTurnsOfTile = 2;  // at dQ of a tile of queries: one for the blocks of each warpgroup

  // What both backward kernels ask about their tiles.
  constexpr BackwardConfig tiles() const { return {head_dim, tile_q, tile_k, stages}; }

  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  constexpr int query_bytes() const { return tile_q * row_bytes(); }
  constexpr int statistics_bytes() const { return tile_q * 4; }
  constexpr int weight_bytes() const { return tile_q * tile_k * 4; }          // P in float32
  constexpr int score_gradient_bytes() const { return tile_q * tile_k * 2; }  // dS

  // dQ of a tile in float32: blocks of 64 columns, which go to memory one at a time. Warpgroup 0 computes the first ones.
  constexpr int dq_columns() const { return sub_tiles() * kSubTileColumns; }
  constexpr int dq_blocks(int warpgroup) const { return warpgroup == 0 ? (sub_tiles() + 1) / 2 : sub_tiles() / 2; }
  constexpr int dq_first_block(int warpgroup) const { return warpgroup == 0 ? 0 : dq_blocks(0); }
  constexpr int dq_block_bytes() const { return tile_q * kSubTileColumns * 4; }

  constexpr int bytes_with(int dout_stages) const {
    const int barriers = 3 + 2 * (stages + dout_stages) + 2 * kWarpgroups + 2 * kTileSlots;
    return 2 * key_bytes() + (stages + dout_stages) * (query_bytes() + statistics_bytes()) + weight_bytes() +
           score_gradient_bytes() + kWarpgroups * dq_block_bytes() + 64 * kTileSlots + 8 * barriers;
  }
  constexpr int dout_stages() const { return bytes_with(stages) <= BackwardConfig::kMostSharedBytes ? stages : 1; }
  constexpr int shared_bytes() const { return bytes_with(dout_stages()); }
};

}  // namespace tessera::sm90
