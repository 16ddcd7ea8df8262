// The operations: attention forward, backward and the merge of partial results.
#pragma once

#include <optional>

#include "tessera/plan.h"

namespace tessera {

// Plan, allocate a workspace, run. Keep a Plan instead when the same problem runs many times.
void attention_forward(const Problem& problem, const ForwardTensors& tensors, const PlanOptions& options = {},
                       void* stream = nullptr);
void attention_backward(const Problem& problem, const BackwardTensors& tensors, const PlanOptions& options = {},
                        void* stream = nullptr);

// New keys and values of a step of decoding, and the cache that they go into.
struct AppendTensors {
  ConstTensorView k, v;  // [batch, tokens, heads_kv, dim_qk] and [batch, tokens, heads_kv, dim_v]
  // [batch, seq_k, heads_kv, dim] or, with a page table, [pages, page_size, heads_kv, dim].
  TensorView k_cache, v_cache;
  ConstTensorView key_lengths;   // int32 [batch]: keys in use before, which stay as they are
  ConstTensorView page_table{};  // int32 [batch, pages of a sequence]; absent: the cache is not paged
};

// Token i of sequence b becomes key key_lengths[b] + i of that sequence. On the CPU, tokens without room or without a page of
// the pool are refused before anything is written; on a GPU, where lengths are read when the kernel runs, they are left out.
void append_keys(const AppendTensors& tensors, void* stream = nullptr);

// Without a Problem or a Plan: what the shapes of the tensors do not say.
struct AttentionOptions {
  Mask mask{};
  std::optional<float> scale{};
  float softcap = 0.0F;
  Dropout dropout{};
  std::optional<ScoreFunction> score_function{};
  std::optional<MaskFunction> mask_function{};
};

// The Problem that q [batch, seq_q, heads_q, dim_qk], k [batch, seq_k, heads_kv, dim_qk], v [batch, seq_k, heads_kv, dim_v]
// and `options` describe.
Problem problem_of(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                   const AttentionOptions& options = {});

// O = attention(Q, K, V). `lse` may be absent.
void attention_forward(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                       const TensorView& out, const TensorView& lse = {}, const AttentionOptions& options = {});

// (O, LSE) of the attention over some of the keys. out [batch, seq, heads, dim] with lse [batch, heads, seq], or ragged
// out [total, heads, dim] with lse [heads, total]; lse is float32.
template <class View>
struct BasicPartial {
  View out;
  View lse;
};
using Partial = BasicPartial<TensorView>;
using ConstPartial = BasicPartial<ConstTensorView>;

// The attention over the union of two disjoint sets of keys:
//   O <- O - sigmoid(lse_b - lse) (O - O_b),  lse <- lse - log sigmoid(lse - lse_b);
// where neither sees a key the result is O = 0, lse = -inf. `result` may be `a` itself. Computed in float32, on `threads`
// threads; 0: OpenMP's default. On a CUDA device in the order of `stream`; then all memory is that device's.
void merge(const ConstPartial& a, const ConstPartial& b, const Partial& result, int threads = 0,
           void* stream = nullptr);

}  // namespace tessera
