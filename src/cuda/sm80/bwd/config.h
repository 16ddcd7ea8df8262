// The backward kernels of the sm80 family: their tiles, the plan of shared memory, and their parameters.
#pragma once

#include "cuda/tile/listed.h"
#include "cuda/tile/program.h"
#include "cuda/tile/work.h"

namespace tessera::sm80 {

// What a block owns, and what it sums over the other tiles:
// - keys: a tile of keys; dK and dV over the tiles of queries that see it.
// - joint: the same, and every step also adds its term of dQ to a float32 sum in global memory.
// - queries: a tile of queries; dQ over its tiles of keys. Computes the scores a second time instead of adding in memory.
// - bias: a tile of dbias; dS over all scores that share its elements.
enum class BackwardRole : int { keys, joint, queries, bias };

struct BackwardConfig {
  int columns;  // of Q, K, V and dO in shared memory at a time, and of the gradients that a block owns
  int tile_q;
  int tile_k;
  int warps;     // 32 rows of every product each
  int stages;    // of the tiles that are streamed
  int blocks;    // that share a multiprocessor
  int resident;  // 1: whole rows fit in `columns`, and the tiles that a block owns are loaded once
  int element_bytes;

  static constexpr int kWarpRows = 32;
  constexpr int threads() const { return 32 * warps; }
  constexpr int row_bytes() const { return columns * element_bytes; }
  constexpr int query_bytes() const { return tile_q * row_bytes(); }
  constexpr int key_bytes() const { return tile_k * row_bytes(); }
  constexpr int weight_row_bytes() const { return tile_k * element_bytes; }
  constexpr int weight_bytes() const { return tile_q * weight_row_bytes(); }
  constexpr int statistics_bytes() const { return 2 * 4 * tile_q; }
  constexpr int owned_bytes(BackwardRole role) const {
    return resident == 0 ? 0 : 2 * (role == BackwardRole::queries ? query_bytes() : key_bytes());
  }
  constexpr int stage_bytes(BackwardRole role) const {
    return 2 * (query_bytes() + key_bytes()) - owned_bytes(role) + statistics_bytes();
  }
  // P and dS, dS alone, or none.
  constexpr int weight_tiles(BackwardRole role) const {
    return role == BackwardRole::bias ? 0 : role == BackwardRole::queries ? 1 : 2;
  }
  // Whether the warps of a block meet once a step, see block.cuh.
  constexpr bool gated() const { return resident != 0 && stages == 2; }
  static constexpr int kGateBytes = 16;
  // float32: a number for every 16 rows of the tiles and of what a warp has of P and dS, see pairs.cuh.
  constexpr int scale_bytes() const {
    return element_bytes == 4 ? 4 * (2 * (tile_q + tile_k) / 16 + 2 * 2 * warps) : 0;
  }
  // The tile that a block owns and, where there is a gate, its steps: block_work.cuh.
  constexpr int work_bytes() const { return gated() ? 512 : 192; }
  constexpr int work_offset(BackwardRole role) const {
    return owned_bytes(role) + stages * stage_bytes(role) + weight_tiles(role) * weight_bytes() + kGateBytes +
           scale_bytes();
  }
  constexpr int shared_bytes(BackwardRole role) const { return work_offset(role) + work_bytes(); }
};

// A [batch, tokens, heads, dim] input.
struct BackwardInput {
  const void* data;
  Strides strides;
  std::int32_t aligned;  // rows start at multiples of 16 bytes
  std::int32_t widened;  // stored as float32 where the kernel computes with 16 bits: dO alone
};

struct BackwardOutput {
  void* data;
  Strides strides;
  std::int32_t is_float32;    // else it has the inputs' dtype
  std::int32_t aligned;       // pairs of elements are aligned
  std::int32_t whole_pieces;  // rows are made of aligned pieces of 16 bytes
};

// dbias: blocks own a tile of it, and sum over the extents that it broadcasts.
struct BackwardBias {
  void* data;
  std::int64_t strides[4];  // of batch, head, query, key; 0 along a broadcast extent
  std::int32_t is_float32;
  std::int32_t extents[4];
  std::int32_t parts[4];  // blocks along each of them: extents of batch and head, tiles of queries and keys, or 1
  std::int32_t batches, heads, query_tiles, key_tiles;  // of the problem
};

// How dQ of a tile of queries is summed by the blocks of role joint: in any order, or in turns; see order.cuh.
struct BackwardTurns {
  std::int32_t* terms;  // for each tile of queries: terms added so far; null: in any order
  std::int32_t group;   // blocks that work on tiles of keys of one head at the same time
  std::int32_t chunks;  // of so many tiles, in a head
  std::int32_t paired;  // 1: heads are dealt in pairs
};

struct BackwardParams {
  BackwardInput q, k, v, dout;
  BackwardOutput dq, dk, dv;
  BackwardBias dbias;
  const float* lse_log2;  // of each row of queries, +inf where nothing is seen; padded to whole tiles
  const float* delta;     // rowsum(dO o O) - dLSE
  float* dq_sum;          // role joint: dQ in float32, in the order of registers
  BackwardTurns turns;
  Batch batch;
  Band band;
  Listed listed;
  ScoreParams score;
  std::int32_t is_listed;
  std::int32_t items;  // of all blocks, or of all groups: heads or pairs of heads
  std::int32_t tiles_of_head;
  std::int32_t section_heads;  // lines whose tiles are handed out together
  std::int32_t chunks;         // of `columns` in the wider of the head dims
  std::int32_t line_rows;
  std::int32_t dim_qk, dim_v;
};

}  // namespace tessera::sm80
