// The forward kernel: a persistent block of one producer and two or three consumer warpgroups.
// FlashAttention-2 (Dao 2023), Algorithm 1, with the split of roles and the overlap of FlashAttention-3 (Shah et al. 2024).
#pragma once

#include "cuda/sm90/fwd/consumer.cuh"
#include "cuda/sm90/fwd/producer.cuh"

namespace tessera::sm90 {

template <ForwardConfig kConfig, MaskKind kMask, class Element>
TESSERA_DEVICE void forward(const ForwardParams& params) {
  extern __shared__ std::uint8_t s_raw[];
  const ForwardShared<kConfig> shared(s_raw);
  if (threadIdx.x == 0) {
    shared.init_barriers();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<kConfig.producer_registers()>();
    if (threadIdx.x == 0) {
      ForwardLoader<kConfig>(params, shared).run();
    } else if (threadIdx.x == 32) {
      schedule<kConfig, kMask>(params, shared);
    }
  } else {
    ptx::raise_registers<kConfig.consumer_registers()>();
    ForwardConsumer<kConfig, kMask, Element>(params, shared, warpgroup - 1).run();
  }
}

}  // namespace tessera::sm90

#define TESSERA_SM90_FORWARD_INSTANCE(name, head_dim, warpgroups, tile_k, stages, mask, element) \
  extern "C" __global__ void __launch_bounds__(128 * (warpgroups + 1), 1)                        \
      name(const __grid_constant__ tessera::sm90::ForwardParams params) {                        \
    tessera::sm90::forward<tessera::sm90::ForwardConfig{head_dim, warpgroups, tile_k, stages},   \
                           tessera::MaskKind::mask, tessera::ptx::element>(params);              \
  }
