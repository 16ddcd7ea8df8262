#include "cuda/blocks.h"

#include "cuda/absent/fail.h"

namespace tessera::internal {

void device_sum(std::span<const ConstTensorView> /*terms*/, float /*value*/, const TensorView& /*target*/,
                void* /*stream*/) {
  fail_without_cuda();
}
void require_merge_on_device(const ConstPartial& /*a*/, const ConstPartial& /*b*/, const Partial& /*result*/) {
  fail_without_cuda();
}
void device_merge(std::span<const ConstPartial> /*terms*/, const Partial& /*result*/, void* /*stream*/) {
  fail_without_cuda();
}
void device_noise(const TensorView& /*target*/, std::uint32_t /*seed*/, void* /*stream*/) { fail_without_cuda(); }
void device_negative_delta(const ConstTensorView& /*dout*/, const ConstTensorView& /*out*/,
                           const ConstTensorView& /*dlse*/, const TensorView& /*target*/, void* /*stream*/) {
  fail_without_cuda();
}
void device_add_per_head(const TensorView& /*lines*/, const ConstTensorView& /*numbers*/,
                         std::int64_t /*first_sequence*/, float /*factor*/, void* /*stream*/) {
  fail_without_cuda();
}
void device_sink_gradient(const ConstTensorView& /*sinks*/, const ConstTensorView& /*lse*/,
                          const ConstTensorView& /*minus_delta*/, const TensorView& /*dsinks*/, void* /*stream*/) {
  fail_without_cuda();
}

}  // namespace tessera::internal
