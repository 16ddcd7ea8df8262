// Slices of views, and the few loops over elements that moving and summing blocks takes. CPU memory.
#pragma once

#include "plan/rows.h"
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

// Same shapes, up to four axes. `convert` rounds where the dtypes differ.
void convert(const ConstTensorView& source, const TensorView& target);
void add(const ConstTensorView& source, const TensorView& target);  // both float32
void fill(const TensorView& target, float value);                   // float32

// dLSE - rowsum(dO * O) for each row of dout and out [batch, seq, heads, dim]; `dlse` may be absent. target, dlse: float32
// [batch, heads, seq].
void negative_delta(const ConstTensorView& dout, const ConstTensorView& out, const ConstTensorView& dlse,
                    const TensorView& target);

// lines[b, h, i] += factor * slopes[h] (or slopes[first_sequence + b, h]) for every row i; all float32.
void add_per_head(const TensorView& lines, const ConstTensorView& slopes, std::int64_t first_sequence, float factor);

// The gradient of the sinks of these rows: -sum exp(sink - lse) D, for lse and -D [batch, heads, seq]; written to dsinks
// [heads].
void sink_gradient(const ConstTensorView& sinks, const ConstTensorView& lse, const ConstTensorView& minus_delta,
                   const TensorView& dsinks);

}  // namespace tessera::internal
