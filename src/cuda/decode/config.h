// Short queries against long keys: tiles, shared memory and parameters. See NOTES.md.
#pragma once

#include <cstdint>

#include "cuda/tile/pages.h"
#include "cuda/tile/program.h"
#include "cuda/tile/work.h"

namespace tessera::decode {

// Keys that a slice multiplies at a time. No step lies in two pages, whose sizes are multiples of it.
inline constexpr int kStepKeys = 16;
// Steps that a block gets at least for each of its slices: below that, what it saves in reading is lost in merging.
inline constexpr int kFewestSteps = 2;
inline constexpr int kMergeThreads = 128;

// A block is `slices` groups of `row_warps` warps. A warp owns 16 rows, each a (query, head of the group) pair; the warps of a
// slice read the same keys from a ring of their own, and the slices take the steps of the block in turn.
struct DecodeConfig {
  int head_dim;
  int row_warps;
  int slices;
  int stages;

  constexpr int rows() const { return 16 * row_warps; }
  constexpr int threads() const { return 32 * row_warps * slices; }
  constexpr int stage_bytes() const { return 2 * kStepKeys * head_dim * 2; }  // of K and V
  constexpr int ring_bytes() const { return slices * stages * stage_bytes(); }
  // The rows of the slices, for their sum: 8 columns more than there are, so that a quad's stores do not collide.
  constexpr int sum_stride() const { return head_dim + 8; }
  constexpr int sum_bytes() const { return slices * rows() * sum_stride() * 4; }
  constexpr int query_bytes() const { return rows() * head_dim * 2; }
  constexpr int statistics_bytes() const { return slices * rows() * 8; }
  constexpr int shared_bytes() const { return ring_bytes() + sum_bytes() + query_bytes() + statistics_bytes(); }
};

// Maximum (in powers of two) and sum of the weights of one row.
struct RowStatistics {
  float maximum;
  float sum;
};

struct DecodeParams {
  const void *q, *k, *v;
  void* out;
  float* lse;                                                         // may be null
  Strides q_strides, k_strides, v_strides, out_strides, lse_strides;  // paged: the batch of k and v counts pages
  const std::int32_t* lengths;                                        // keys in use of each sequence; null: `keys`
  std::int64_t lengths_stride;
  Pages pages;
  std::int32_t batch, queries, keys, heads_kv, group_size;
  std::int32_t row_tiles;  // of (query, head of the group) rows
  std::int32_t dim_qk, dim_v;
  std::int32_t out_is_float32;
  std::int32_t blocks;  // among which the steps are shared out
  Band band;
  ScoreParams score;
  // Two rows of tiles for each block: of a unit that began before it, and of one that goes on after it.
  float* partial_out;           // [2 * blocks, rows, dim_v]
  RowStatistics* partial_rows;  // [2 * blocks, rows]
};

}  // namespace tessera::decode
