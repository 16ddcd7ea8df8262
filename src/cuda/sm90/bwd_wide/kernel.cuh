// The backward kernel for wide heads: a persistent block of one producer and two consumer warpgroups, which owns a tile of 64
// keys at a time and walks the tiles of queries. FlashAttention-2 (Dao 2023), Algorithm 2.
//
// The warpgroups do not share out keys, of which there are too few, but products: one computes P and dV, the other dS and dK,
// and each some columns of dQ. So all products are at least 64 columns wide (narrower ones wait for shared memory), P is the
// first operand of dV in registers, and the arithmetic of one warpgroup runs beside products of the other.
//
// Per step of 64 x 64 scores and 256 columns the tensor cores take 2560 cycles; shared memory, at 128 bytes a cycle, takes
// 1984 for operands, 320 for P and dS, 512 for arriving tiles and 1024 for dQ: 3840. The L2 cache delivers 64 KiB and adds
// 64 KiB, which may limit long sequences when all blocks are at it.
#pragma once

#include "cuda/sm90/bwd_wide/consumer.cuh"
#include "cuda/sm90/bwd_wide/producer.cuh"

namespace tessera::sm90 {

template <BackwardWideConfig kConfig, MaskKind kMask, class Element>
TESSERA_DEVICE void backward_wide(const BackwardParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  const BackwardWideShared<kConfig> shared(s_raw);
  if (threadIdx.x == 0) {
    shared.init_barriers();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    ptx::lower_registers<BackwardWideConfig::kProducerRegisters>();
    const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
    if (threadIdx.x == 0) {
      BackwardWideLoader<kConfig, kMask>(params, shared).run();
    } else if (warp == 1) {
      DqBlockWriter<kConfig, kMask, 0>(params, shared).run();
    } else if (warp == 2) {
      DqBlockWriter<kConfig, kMask, 1>(params, shared).run();
    }
  } else if (warpgroup == 1) {
    ptx::raise_registers<BackwardWideConfig::kWeightRegisters>();
    WeightConsumer<kConfig, kMask, Element>(params, shared).run();
  } else {
    ptx::raise_registers<BackwardWideConfig::kScoreGradientRegisters>();
    ScoreGradientConsumer<kConfig, kMask, Element>(params, shared).run();
  }
}

}  // namespace tessera::sm90

#define TESSERA_SM90_BACKWARD_WIDE_INSTANCE(name, head_dim, tile_q, tile_k, stages, mask, element)    \
  extern "C" __global__ void __launch_bounds__(tessera::sm90::BackwardWideConfig::kThreads, 1)        \
      name(const __grid_constant__ tessera::sm90::BackwardParams params) {                            \
    tessera::sm90::backward_wide<tessera::sm90::BackwardWideConfig{head_dim, tile_q, tile_k, stages}, \
                                 tessera::MaskKind::mask, tessera::ptx::element>(params);             \
  }
