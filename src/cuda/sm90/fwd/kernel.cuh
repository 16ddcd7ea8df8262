// The forward kernel: a persistent block of one producer and two or three consumer warpgroups.
// FlashAttention-2 (Dao 2023), Algorithm 1, with the split of roles and the overlap of FlashAttention-3 (Shah et al. 2024).
#pragma once

#include "cuda/ptx/grid.cuh"
#include "cuda/sm90/fwd/compact_walk.cuh"
#include "cuda/sm90/fwd/producer.cuh"
#include "cuda/sm90/fwd/walk.cuh"

namespace tessera::sm90 {

template <bool kCompact, ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
struct WalkOf {
  using Type = CompactForwardWalk<kConfig, kMask, Element, kFeatures>;
};
template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
struct WalkOf<false, kConfig, kMask, Element, kFeatures> {
  using Type = ForwardWalk<kConfig, kMask, Element, kFeatures>;
};

template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void consume(const ForwardParams& params, const ForwardShared<kConfig>& shared, int warpgroup,
                            int twin) {
  constexpr std::uint32_t kUnrolled = kBounded | kUnrolledWalk;
  constexpr bool kIsUnrolled = (kFeatures & kUnrolled) == kUnrolled && !Features<kFeatures>::kDropout;
  constexpr bool kIsCompact = kFeatures != 0 && !kIsUnrolled;
  typename WalkOf<kIsCompact, kConfig, kMask, Element, kFeatures>::Type(params, shared, warpgroup, twin).run();
}

// What blocks do while the kernel in front ends. It may still write what they read, and read what they write: every thread that
// touches tensors waits for its end.
template <MaskKind kMask, ForwardConfig kConfig>
TESSERA_DEVICE void get_ready(const ForwardParams& params, const ForwardShared<kConfig>& shared, bool first_thread) {
  ptx::let_next_grid_start();
  if (first_thread) {
    shared.init_barriers(kMask);
    ptx::prefetch_map(params.q);
    ptx::prefetch_map(params.k);
    ptx::prefetch_map(params.v);
    ptx::prefetch_map(params.out_map);
  }
  __syncthreads();
}

// The two threads of the producer that work, `thread` 0 and 32 of those of a twin.
template <ForwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures>
TESSERA_DEVICE void produce(const ForwardParams& params, const ForwardShared<kConfig>& shared, int thread, int twin) {
  if (thread == 0) {
    ptx::wait_for_last_grid();
    KeyLoader<kConfig, kMask, kFeatures>(params, shared).run();
  } else if (thread == 32) {
    if (params.batch.sequences != nullptr) {
      ptx::wait_for_last_grid();
    }
    schedule<kConfig, kMask, kFeatures>(params, shared, twin, QueryLoader<kConfig>(shared));
  }
}

// Two of the kernels below in one block. They share nothing.
template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void forward_twins(const ForwardParams& params) {
  static_assert(kConfig.twins() == 2 && kConfig.warpgroups == 2);
  extern __shared__ __align__(ForwardConfig::kSharedAlignment) std::uint8_t s_raw[];
  const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
  const int twin = warp < 4 ? warp / 2 : (warp - 4) / 8;
  const ForwardShared<kConfig> shared(s_raw + twin * kConfig.shared_bytes());
  get_ready<kMask>(params, shared, threadIdx.x == 0 || threadIdx.x == 64);
  if (warp < 4) {
    ptx::lower_registers<kConfig.producer_registers()>();
    produce<kConfig, kMask, kFeatures>(params, shared, static_cast<int>(threadIdx.x) % 64, twin);
  } else {
    ptx::raise_registers<kConfig.consumer_registers()>();
    ptx::wait_for_last_grid();
    consume<kConfig, kMask, Element, kFeatures>(params, shared, (warp - 4) / 4 % 2, twin);
  }
}

template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
TESSERA_DEVICE void forward(const ForwardParams& params) {
  if constexpr (kConfig.twins() == 2) {
    forward_twins<kConfig, kMask, Element, kFeatures>(params);
    return;
  }
  extern __shared__ __align__(ForwardConfig::kSharedAlignment) std::uint8_t s_raw[];
  const ForwardShared<kConfig> shared(s_raw);
  get_ready<kMask>(params, shared, threadIdx.x == 0);
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<kConfig.producer_registers()>();
    produce<kConfig, kMask, kFeatures>(params, shared, static_cast<int>(threadIdx.x), 0);
  } else {
    ptx::raise_registers<kConfig.consumer_registers()>();
    ptx::wait_for_last_grid();
    consume<kConfig, kMask, Element, kFeatures>(params, shared, warpgroup - 1, 0);
  }
}

}  // namespace tessera::sm90

// `features` of ScoreFeature, or'ed.
#define TESSERA_SM90_FORWARD_PROGRAM(name, head_dim, warpgroups, tile_k, stages, mask, element, features) \
  extern "C" __global__ void __launch_bounds__(                                                           \
      (tessera::sm90::ForwardConfig{head_dim, warpgroups, tile_k, stages}.threads()), 1)                  \
      name(const __grid_constant__ tessera::sm90::ForwardParams params) {                                 \
    tessera::sm90::forward<tessera::sm90::ForwardConfig{head_dim, warpgroups, tile_k, stages},            \
                           tessera::MaskKind::mask, tessera::ptx::element, features>(params);             \
  }
#define TESSERA_SM90_FORWARD_INSTANCE(name, head_dim, warpgroups, tile_k, stages, mask, element) \
  TESSERA_SM90_FORWARD_PROGRAM(name, head_dim, warpgroups, tile_k, stages, mask, element, 0)
