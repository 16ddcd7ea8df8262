// The tile configuration of the backward kernel: tiles, stages, registers and the plan of shared memory.
#pragma once

#include "cuda/sm90/bwd/listed.h"
#include "cuda/tensor_map.h"
#include "cuda/tile/program.h"
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
  static constexpr int kWeightBuffers = 3;  // of dS: one is written while the two before it may be read
  static constexpr int kMostSharedBytes = 232448;

  constexpr int sub_tiles() const { return (head_dim + kSubTileColumns - 1) / kSubTileColumns; }
  constexpr int row_bytes() const { return sub_tiles() * kSubTileColumns * 2; }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  constexpr int query_bytes() const { return tile_q * row_bytes(); }
  constexpr int statistics_bytes() const { return tile_q * 4; }
  constexpr int weight_bytes() const { return tile_q * tile_k * 2; }
  // dQ of a tile in float32, in two halves of 64 x 64, one for each warpgroup: rows of it where a tile has 128 queries, else
  // columns.
  constexpr int dq_columns() const { return sub_tiles() * kSubTileColumns; }
  constexpr int dq_half_bytes() const { return tile_q * dq_columns() * 4 / 2; }

  constexpr int barriers() const { return 4 + 4 * stages + 2 * kWarpgroups + 2 * kTileSlots; }
  constexpr int shared_bytes() const {
    return 2 * key_bytes() + 2 * stages * (query_bytes() + statistics_bytes()) + kWeightBuffers * weight_bytes() +
           2 * dq_half_bytes() + 64 * kTileSlots + 8 * barriers() + 8 * stages;
  }
};

// See BackwardVisits.
enum class DqOrder : std::int32_t { chain, together };

// How tiles of keys are handed out, and in which order their terms of dQ are added. The terms of one tile of queries are
// added in one order in every run; a block waits for its turn. See BackwardVisits.
struct BackwardOrder {
  std::int32_t tiles;          // of keys, in all
  std::int32_t tiles_of_head;  // of one key head (of all sequences, where they differ)
  std::int32_t section_heads;  // (batch, key head) pairs whose tiles of keys are handed out together
  std::int32_t* counter;       // of tiles handed out behind the first of each block; null: tiles are dealt to groups
  std::int32_t* turns;         // for each tile of queries: terms added so far; null: any order
  DqOrder dq_order;
  std::int32_t paired;  // 1: heads are dealt in pairs to groups of blocks, see BackwardVisits
  std::int32_t group;   // blocks of a group, which work on so many tiles of keys of a head at a time; 0: no groups
  std::int32_t dealt_of_head;  // tiles of keys of a head, rounded up to whole groups
};

struct BackwardParams {
  TensorMap q, k, v, dout;
  void *dk, *dv;
  Strides dk_strides, dv_strides;
  const float* lse_log2;  // of each row of queries, +inf where nothing is seen; padded to whole tiles
  const float* delta;     // rowsum(dO o O) - dLSE
  float* dq_sum;          // dQ in float32 and in the order of registers
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
