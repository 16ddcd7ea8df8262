// The tile configuration of the backward kernel: tiles, stages, registers and the plan of shared memory.
#pragma once

#include "cuda/sm90/bwd/listed.h"
#include "cuda/sm90/bwd/order.h"
#include "cuda/tensor_map.h"
#include "cuda/tile/program.h"
#include "cuda/tile/statistic_parts.h"
#include "cuda/tile/work.h"

namespace tessera::sm90 {

struct BackwardConfig {
  int head_dim;  // columns of Q, K, V and dO that are computed
  int tile_q;
  int tile_k;  // 64 for each consumer warpgroup
  int stages;  // of Q and dO

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kSubTileColumns = 64;
  static constexpr int kTileSlots = 2;
  static constexpr int kWeightBuffers = 2;  // of dS: one is written while the one before it may be read
  static constexpr int kWriters = 2;        // of dQ, each with a buffer
  static constexpr int kMostSharedBytes = 232448;

  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  constexpr int query_bytes() const { return tile_q * row_bytes(); }
  // LSE and delta of a tile of queries, of one step: in parts (see StatisticParts), and behind them what these are multiplied with
  // (see BackwardShared) or, for score programs, one of the two as it is.
  constexpr int statistics_bytes() const { return tile_q * 4; }
  constexpr int parts_bytes() const { return tile_q * static_cast<int>(sizeof(StatisticParts)); }
  static constexpr int kUnitBytes = 128;
  constexpr int all_statistics_bytes(bool program) const {
    return parts_bytes() + (program ? kUnitBytes + statistics_bytes() : 3 * kUnitBytes);
  }
  constexpr int weight_bytes() const { return tile_q * tile_k * 2; }
  // dQ of a tile in float32, in two halves of 64 x 64, one for each warpgroup: rows of it where a tile has 128 queries, else
  // columns.
  constexpr int dq_columns() const { return sub_tiles() * kSubTileColumns; }
  constexpr int dq_half_bytes() const { return tile_q * dq_columns() * 4 / 2; }

  constexpr int barriers() const { return 6 + 4 * stages + 2 * kWarpgroups + 2 * kTileSlots; }
  constexpr int shared_bytes(bool program) const {
    return 2 * key_bytes() + 2 * stages * query_bytes() + all_statistics_bytes(program) +
           kWeightBuffers * weight_bytes() + 2 * kWriters * dq_half_bytes() + 64 * kTileSlots + 8 * barriers() +
           8 * stages;
  }
};

struct BackwardParams {
  TensorMap q, k, v, dout;
  void *dk, *dv;
  Strides dk_strides, dv_strides;
  const StatisticParts* parts;  // of each row of queries, padded to whole tiles; and, for score programs:
  const float* lse_log2;        // +inf where nothing is seen
  const float* delta;           // rowsum(dO o O) - dLSE
  float* dq_sum;                // dQ in float32 and in the order of registers
  Batch batch;
  Band band;
  BackwardOrder order;
  std::int32_t line_rows;  // rows of statistics of a (batch, head) pair, or of a head where sequences differ
  std::int32_t dim_qk, dim_v;
  float scale, scale_log2;  // the second of the tanh where there is a softcap
  float score_scale;        // of the products in the tanh
  ScoreParams score;
  ListedBackward listed;  // of listed masks
};

}  // namespace tessera::sm90
