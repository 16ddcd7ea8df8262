// Tiles, shared memory and parameters of the forward kernel of the sm80 family.
#pragma once

#include "cuda/tile/listed.h"
#include "cuda/tile/program.h"
#include "cuda/tile/shared_rows.h"
#include "cuda/tile/work.h"

namespace tessera::sm80 {

struct ForwardConfig {
  int element_bytes;
  int dim_qk;      // most columns of Q and K
  int dim_v;       // columns of V and O of a block; a wider V takes several blocks
  int warps;       // of 16 * row_blocks queries each
  int row_blocks;  // each fragment of K and V that a warp loads serves so many products
  int tile_k;      // keys of a tile
  int stages;      // tiles of K and of V in shared memory; 0: one tile that is K and then V

  constexpr int threads() const { return 32 * warps; }
  constexpr int warp_rows() const { return 16 * row_blocks; }
  constexpr int tile_q() const { return warps * warp_rows(); }

  constexpr int padded_bytes(int columns) const { return (columns * element_bytes + 127) / 128 * 128; }
  constexpr int query_bytes() const { return tile_q() * padded_bytes(dim_qk); }
  constexpr int key_bytes() const { return tile_k * padded_bytes(dim_qk); }
  constexpr int value_bytes() const { return tile_k * padded_bytes(dim_v); }
  constexpr int values_offset() const { return query_bytes() + stages * key_bytes(); }
  constexpr int scales_offset() const {
    return stages == 0 ? query_bytes() + (key_bytes() > value_bytes() ? key_bytes() : value_bytes())
                       : values_offset() + stages * value_bytes();
  }
  // float32: a number for every 8 rows of the tiles, see tile/float_pairs.cuh.
  constexpr int scale_bytes() const {
    return element_bytes == 4 ? (tile_q() + 2 * (stages == 2 ? 2 : 1) * tile_k) / 2 : 0;
  }
  constexpr int shared_bytes() const { return scales_offset() + scale_bytes(); }

  // Whether registers hold the queries beside O and the scores of a tile, which float32 has in two parts.
  constexpr bool keeps_queries() const {
    const int columns = element_bytes == 2 ? dim_v + tile_k + dim_qk / 2 : dim_v + 2 * tile_k + dim_qk;
    return row_blocks * columns / 2 <= 176;
  }
  // Two blocks a multiprocessor: while one waits at a barrier the other computes.
  constexpr int blocks_per_multiprocessor() const { return threads() <= 128 ? 2 : 1; }
};

// How tiles of queries are numbered.
struct ForwardOrder {
  std::int32_t tiles;          // in all, of one part of V's columns
  std::int32_t tiles_of_head;  // of one head of the batch (all sequences)
  std::int32_t section_heads;  // > 0: the last tiles first within sections of so many (batch, head) pairs
};

struct ForwardParams {
  RowSource q, k, v;
  void* out;
  float* lse;  // or null
  Strides out_strides, lse_strides;
  std::int32_t out_is_float32;
  std::int32_t out_is_aligned;  // each row of O starts at a multiple of 16 bytes and has a multiple of 8 columns
  std::int32_t dim_v;
  std::int32_t is_listed;
  Batch batch;
  Band band;
  ForwardOrder order;
  Listed listed;
  ScoreParams score;
};

}  // namespace tessera::sm80
