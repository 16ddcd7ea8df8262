// The backward kernels for wide heads, FlashAttention-2 (Dao 2023), Algorithm 2, in two passes over the scores: one for dK and
// dV, which walks the tiles of queries of each tile of keys, and one for dQ, which walks the tiles of keys of each tile of
// queries. Each is a persistent block of one producer and two consumer warpgroups.
#pragma once

#include "cuda/sm90/bwd_wide/keys_loader.cuh"
#include "cuda/sm90/bwd_wide/keys_score_gradients.cuh"
#include "cuda/sm90/bwd_wide/keys_weights.cuh"
#include "cuda/sm90/bwd_wide/queries_consumer.cuh"
#include "cuda/sm90/bwd_wide/queries_loader.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void backward_keys(const BackwardParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  const BackwardKeysShared<kConfig> shared(s_raw);
  if (threadIdx.x == 0) {
    shared.init_barriers();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<BackwardKeysConfig::kProducerRegisters>();
    if (threadIdx.x == 0) {
      BackwardKeysLoader<kConfig, kMask, kFeatures>(params, shared).run();
    }
  } else {
    ptx::raise_registers<BackwardKeysConfig::kConsumerRegisters>();
    if (warpgroup == 1) {
      WeightConsumer<kConfig, kMask, Element, kFeatures>(params, shared).run();
    } else {
      ScoreGradientConsumer<kConfig, kMask, Element, kFeatures>(params, shared).run();
    }
  }
}

template <BackwardQueriesConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void backward_queries(const BackwardQueriesParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  const BackwardQueriesShared<kConfig> shared(s_raw);
  if (threadIdx.x == 0) {
    shared.init_barriers();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<BackwardQueriesConfig::kProducerRegisters>();
    if (threadIdx.x == 0) {
      BackwardQueriesLoader<kConfig>(params, shared).run();
    } else if (threadIdx.x == 32) {
      schedule<kConfig.tiles(), kMask, kFeatures>(params, shared, 0);
    }
  } else {
    ptx::raise_registers<BackwardQueriesConfig::kConsumerRegisters>();
    BackwardQueriesConsumer<kConfig, kMask, Element, kFeatures>(params, shared, warpgroup - 1).run();
  }
}

}  // namespace tessera::sm90

// `features` of ScoreFeature, or'ed.
#define TESSERA_SM90_BACKWARD_KEYS_PROGRAM(name, head_dim, tile_q, tile_k, stages, mask, element, features) \
  extern "C" __global__ void __launch_bounds__(tessera::sm90::BackwardKeysConfig::kThreads, 1)              \
      name(const __grid_constant__ tessera::sm90::BackwardParams params) {                                  \
    tessera::sm90::backward_keys<tessera::sm90::BackwardKeysConfig{head_dim, tile_q, tile_k, stages},       \
                                 tessera::MaskKind::mask, tessera::ptx::element, features>(params);         \
  }
#define TESSERA_SM90_BACKWARD_KEYS_INSTANCE(name, head_dim, tile_q, tile_k, stages, mask, element) \
  TESSERA_SM90_BACKWARD_KEYS_PROGRAM(name, head_dim, tile_q, tile_k, stages, mask, element, 0)

#define TESSERA_SM90_BACKWARD_QUERIES_PROGRAM(name, head_dim, tile_q, tile_k, key_stages, value_stages, mask, element, \
                                              features)                                                                \
  extern "C" __global__ void __launch_bounds__(tessera::sm90::BackwardQueriesConfig::kThreads, 1)                      \
      name(const __grid_constant__ tessera::sm90::BackwardQueriesParams params) {                                      \
    tessera::sm90::backward_queries<tessera::sm90::BackwardQueriesConfig{head_dim, tile_q, tile_k, key_stages,         \
                                                                         value_stages},                                \
                                    tessera::MaskKind::mask, tessera::ptx::element, features>(params);                 \
  }
#define TESSERA_SM90_BACKWARD_QUERIES_INSTANCE(name, head_dim, tile_q, tile_k, key_stages, value_stages, mask, \
                                               element)                                                        \
  TESSERA_SM90_BACKWARD_QUERIES_PROGRAM(name, head_dim, tile_q, tile_k, key_stages, value_stages, mask, element, 0)
