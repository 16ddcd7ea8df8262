// Slices of views, and the few loops over elements that moving and summing blocks takes.
#pragma once

#include <span>

#include "plan/rows.h"
#include "tessera/attention.h"
#include "tessera/mask.h"
#include "tessera/sequence_layout.h"
#include "tessera/tensor_view.h"

namespace tessera::internal {

// The elements stripe.begin, stripe.begin + stripe.stride, ... of one axis.
template <class Void>
BasicTensorView<Void> slice(BasicTensorView<Void> view, int axis, const Stripe& stripe) {
  const auto at = static_cast<std::size_t>(axis);
  view.data = advance(view.data, view.dtype, stripe.begin * view.strides[at]);
  view.strides[at] *= stripe.stride;
  view.shape[at] = stripe.count;
  return view;
}
template <class Void>
BasicTensorView<Void> slice(const BasicTensorView<Void>& view, int axis, Range range) {
  return slice(view, axis, Stripe{range.begin, range.size(), 1});
}

// The functions below work where their target is: on the CPU at once, on a device in the order of `stream`. Devices take no
// float64.

// target = terms[0] + .. in float32, one to kMostTerms tensors of the same shape, up to four axes, which may be the target
// itself. One term is converted, or copied where the dtypes agree.
inline constexpr std::size_t kMostTerms = 5;
void sum(std::span<const ConstTensorView> terms, const TensorView& target, void* stream = nullptr);
inline void convert(const ConstTensorView& source, const TensorView& target, void* stream = nullptr) {
  sum({&source, 1}, target, stream);
}
void fill(const TensorView& target, float value, void* stream = nullptr);

// The union of one to kMostTerms partial results, which may be `result` itself. `threads` as in tessera::merge.
void merge_all(std::span<const ConstPartial> terms, const Partial& result, int threads, void* stream = nullptr);

// dLSE - rowsum(dO * O) for each row of dout and out [batch, seq, heads, dim]; `dlse` may be absent. target, dlse: float32
// [batch, heads, seq].
void negative_delta(const ConstTensorView& dout, const ConstTensorView& out, const ConstTensorView& dlse,
                    const TensorView& target, void* stream = nullptr);

// lines[b, h, i] += factor * slopes[h] (or slopes[first_sequence + b, h]) for every row i; all float32.
void add_per_head(const TensorView& lines, const ConstTensorView& slopes, std::int64_t first_sequence, float factor,
                  void* stream = nullptr);

// The gradient of the sinks of these rows: -sum exp(sink - lse) D, for lse and -D [batch, heads, seq]; written to dsinks
// [heads].
void sink_gradient(const ConstTensorView& sinks, const ConstTensorView& lse, const ConstTensorView& minus_delta,
                   const TensorView& dsinks, void* stream = nullptr);

}  // namespace tessera::internal
