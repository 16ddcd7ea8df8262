// The backward kernel: a persistent block of one producer and two consumer warpgroups, which owns a tile of keys at a time and
// walks the tiles of queries. FlashAttention-2 (Dao 2023), Algorithm 2.
#pragma once

#include "cuda/sm90/bwd/consumer.cuh"
#include "cuda/sm90/bwd/producer.cuh"

namespace tessera::sm90 {

template <BackwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void backward(const BackwardParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  using Shared = BackwardShared<kConfig, kFeatures>;
  const Shared shared(s_raw);
  if (threadIdx.x == 0) {
    shared.init_barriers();
  }
  shared.init_units(static_cast<int>(threadIdx.x), params.score);
  __syncthreads();
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<BackwardConfig::kProducerRegisters>();
    const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
    if (threadIdx.x == 0) {
      BackwardLoader<kConfig, kMask, kFeatures>(params, shared).run();
    } else if (warp == 1 || warp == 2) {
      DqWriter<kConfig, kMask, kFeatures>(params, shared, warp - 1).run();
    }
  } else {
    ptx::raise_registers<BackwardConfig::kConsumerRegisters>();
    BackwardConsumer<kConfig, kMask, Element, kFeatures>(params, shared, warpgroup - 1).run();
  }
}

}  // namespace tessera::sm90

// `features` of ScoreFeature, or'ed.
#define TESSERA_SM90_BACKWARD_PROGRAM(name, head_dim, tile_q, tile_k, stages, mask, element, features)                \
  extern "C" __global__ void __launch_bounds__(tessera::sm90::BackwardConfig::kThreads, 1)                            \
      name(const __grid_constant__ tessera::sm90::BackwardParams params) {                                            \
    tessera::sm90::backward<tessera::sm90::BackwardConfig{head_dim, tile_q, tile_k, stages}, tessera::MaskKind::mask, \
                            tessera::ptx::element, features>(params);                                                 \
  }
#define TESSERA_SM90_BACKWARD_INSTANCE(name, head_dim, tile_q, tile_k, stages, mask, element) \
  TESSERA_SM90_BACKWARD_PROGRAM(name, head_dim, tile_q, tile_k, stages, mask, element, 0)
