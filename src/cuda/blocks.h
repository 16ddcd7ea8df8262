// The kernels of common/blocks.cu and common/merge.cu on tensor views of one device, in the order of a stream.
#pragma once

#include <span>

#include "tessera/attention.h"

namespace tessera::internal {

// target = the sum of up to three terms of the target's shape, in float32; `value` where there are none. Up to four axes, any
// strides, any dtype but float64. `target` may be one of the terms.
void device_sum(std::span<const ConstTensorView> terms, float value, const TensorView& target, void* stream);

// The union of one to three partial results; `result` may be one of them. Shapes as in tessera::merge.
// Throws Error(invalid_argument) that names a tensor whose data are not memory of its device.
void require_merge_on_device(const ConstPartial& a, const ConstPartial& b, const Partial& result);
void device_merge(std::span<const ConstPartial> terms, const Partial& result, void* stream);

// Random numbers of mean 0 and variance 1 for a contiguous tensor, for measurements.
void device_noise(const TensorView& target, std::uint32_t seed, void* stream);

// As in dist/tensor_ops.h.
void device_negative_delta(const ConstTensorView& dout, const ConstTensorView& out, const ConstTensorView& dlse,
                           const TensorView& target, void* stream);
void device_add_per_head(const TensorView& lines, const ConstTensorView& numbers, std::int64_t first_sequence,
                         float factor, void* stream);
void device_sink_gradient(const ConstTensorView& sinks, const ConstTensorView& lse, const ConstTensorView& minus_delta,
                          const TensorView& dsinks, void* stream);

}  // namespace tessera::internal
