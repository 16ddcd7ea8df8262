// What to compute. Pure data: no pointers to tensors, comparable, printable.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/mask.h"
#include "tessera/score_function.h"
#include "tessera/types.h"

namespace tessera {

// Dropout of attention weights, as a pure function of (seed, batch, head, query position, key position): the same
// elements are dropped by every Impl, for every tiling and thread count. See docs/numerics.md for the definition.
struct Dropout {
  // In [0, 1]. Rounded to threshold() / 256; the kept weights are scaled by 256 / (256 - threshold()).
  double probability = 0.0;
  std::uint64_t seed = 0;
  // Position of the first query, the first key, the first head and the first sequence of the batch in the whole
  // problem that this one is a part of.
  std::int64_t query_start = 0;
  std::int64_t key_start = 0;
  std::int64_t head_start = 0;
  std::int64_t batch_start = 0;
  // Distance in the whole problem between neighbours of this one.
  std::int64_t query_stride = 1;
  std::int64_t key_stride = 1;

  int threshold() const;
  bool operator==(const Dropout&) const = default;
};

// One sequence of a batch: its lengths and the row of its first token in the query-side and key-side tensors.
struct SequenceSpan {
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  std::int64_t query_row = 0;
  std::int64_t key_row = 0;
};

// One attention problem:
//   S = scale * Q K^T,  S <- softcap * tanh(S / softcap),  S <- score_function(S),  S += bias - slope * |i + diagonal - j|,
//   S = -inf outside the mask and where mask_function says so,  P = softmax over the keys (and the sink),  O = dropout(P) V,
//   LSE = log of the softmax's denominator.
//
// Batch layout: Q [batch, seq_q, heads_q, dim_qk], K [batch, seq_k, heads_kv, dim_qk], V [batch, seq_k, heads_kv, dim_v],
// O [batch, seq_q, heads_q, dim_v], LSE [batch, heads_q, seq_q].
// Ragged layout (when cu_seqlens_q is not empty): Q [total_q, heads_q, dim_qk], K [total_k, heads_kv, dim_qk], V
// [total_k, heads_kv, dim_v], O [total_q, heads_q, dim_v], LSE [heads_q, total_q]; sequence b owns the rows
// cu_seqlens_q[b] .. cu_seqlens_q[b + 1]. seq_q and seq_k are then the longest lengths.
struct Problem {
  // Of Q, K and V: float32, bfloat16 or float16; float64 is computed by the reference alone, and then LSE, sinks and
  // slopes are float64 too.
  DType dtype = DType::float32;
  std::optional<DType> output_dtype;  // of O, dO, dQ, dK and dV: dtype (the default) or float32

  std::int64_t batch = 1;
  std::int64_t seq_q = 0;
  std::int64_t seq_k = 0;
  std::int64_t heads_q = 1;
  std::int64_t heads_kv = 1;  // divides heads_q; query head h reads key head h / (heads_q / heads_kv)
  std::int64_t dim_qk = 0;    // 1 .. 512
  std::int64_t dim_v = 0;     // 1 .. 512

  std::vector<std::int64_t> cu_seqlens_q;  // ragged layout: batch + 1 numbers from 0, not decreasing
  std::vector<std::int64_t> cu_seqlens_k;
  std::vector<std::int64_t> key_lengths;  // keys in use of each sequence: batch numbers, or empty for all

  // A cache of keys that grows between runs of one plan, in the batch layout of the forward pass.
  // Whether the keys in use come with the tensors of each run (ForwardTensors::key_lengths) in place of key_lengths; seq_k
  // is the most that there can be.
  bool lengths_in_tensors = false;
  // Keys in a page: a power of two from 16, or 0 where K and V are not paged. K is then [pages, page_size, heads_kv, dim_qk], V
  // [pages, page_size, heads_kv, dim_v], and ForwardTensors::page_table says which pages a sequence has.
  std::int64_t page_size = 0;

  Mask mask;
  std::optional<float> scale;  // 1 / sqrt(dim_qk) when absent
  float softcap = 0.0F;        // 0: none
  bool alibi = false;          // slopes float32 [heads_q] or [batch, heads_q]
  bool sinks = false;          // one logit a head, float32 [heads_q]
  // Shape of the bias, [batch or 1, heads_q or 1, seq_q or 1, seq_k or 1]; an extent of 1 is broadcast.
  std::optional<std::array<std::int64_t, 4>> bias_shape;
  DType bias_dtype = DType::float32;  // float32 or dtype

  // Functions that users write; see score_function.h. Pairs attend where `mask` and mask_function both admit them.
  std::optional<ScoreFunction> score_function;
  std::optional<MaskFunction> mask_function;
  Positions function_positions;  // that they see: those within each sequence, unless the problem is a part of a whole

  Dropout dropout;

  bool ragged() const { return !cu_seqlens_q.empty(); }
  bool paged() const { return page_size != 0; }
  // Columns of the page table.
  std::int64_t pages_per_sequence() const { return paged() ? (seq_k + page_size - 1) / page_size : 0; }
  DType out_dtype() const { return output_dtype.value_or(dtype); }
  float softmax_scale() const;
  std::int64_t group_size() const { return heads_q / heads_kv; }
  std::int64_t total_q() const { return ragged() ? cu_seqlens_q.back() : batch * seq_q; }
  std::int64_t total_k() const { return ragged() ? cu_seqlens_k.back() : batch * seq_k; }
  SequenceSpan sequence(std::int64_t batch_index) const;
  // Whether every sequence of the batch has the same lengths and the same mask.
  bool sequences_are_alike() const;
  // How many schedules the heads of a sequence have: heads_q where the block mask has a pattern for each, else 1.
  std::int64_t schedules_per_sequence() const;
  // Of one sequence and, where the block mask differs between heads, one query head. A mask function has to be lowered before,
  // or it throws Error.
  TileSchedule schedule(std::int64_t batch_index, std::int64_t tile_q, std::int64_t tile_k,
                        std::int64_t head = 0) const;

  // One line with every field that differs from its default.
  std::string describe() const;
  bool operator==(const Problem&) const = default;
};

// Sets the ragged layout: cumulative lengths, batch, seq_q and seq_k.
void set_ragged(Problem& problem, std::vector<std::int64_t> cu_seqlens_q, std::vector<std::int64_t> cu_seqlens_k);

// The same problem with its mask function evaluated into mask.block_mask(): in the blocks of that, or else of 128 x 128 pairs. A
// plan does this once, on `threads` threads; 0: as many as the machine has. Without a mask function it is the problem itself.
Problem lower_mask_function(const Problem& problem, int threads = 0);

// Throws Error(invalid_argument) that names the first field that is wrong, its value and what is accepted.
void validate(const Problem& problem);

// Whether dropout keeps the weight of this (query, key) pair. Positions are those of the Problem, which the strides and
// starts in `dropout` turn into those of the whole. (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3": Philox4x32
// with 7 rounds, the fewest that they found to be Crush-resistant.)
bool dropout_keeps(const Dropout& dropout, std::int64_t batch, std::int64_t head, std::int64_t query, std::int64_t key);

}  // namespace tessera
