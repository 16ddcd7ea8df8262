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

// For people who do not care about plans: what the shapes of the tensors do not say.
struct AttentionOptions {
  Mask mask{};
  std::optional<float> scale{};
  float softcap = 0.0F;
  Dropout dropout{};
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
// threads; 0: OpenMP's default.
void merge(const ConstPartial& a, const ConstPartial& b, const Partial& result, int threads = 0);

}  // namespace tessera
