// The backward kernels of the sm80 family. What a block owns, and sums over the other tiles, is its role.
#pragma once

#include "cuda/sm80/bwd/block.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
TESSERA_DEVICE void backward(const BackwardParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  using Work = BlockWork<kConfig, kRole>;
  static_assert(sizeof(Work) <= kConfig.work_bytes());
  auto& s_work = *reinterpret_cast<Work*>(s_raw + kConfig.work_offset(kRole));
  BackwardBlock<kConfig, Element, Program, kRole> block(params, ptx::shared_address(s_raw), s_work);
  if constexpr (kRole == BackwardRole::joint) {
    if (works_out<kConfig>()) {
      s_work.item = JointItems<kConfig>::before(params);
      s_work.added = nullptr;
      if constexpr (kConfig.gated()) {
        work_out_next_item<kConfig>(params, s_work);
      }
    }
    while (next_item<kConfig>(params, s_work)) {
      block.run();
      __syncthreads();  // shared memory is read
    }
  } else {
    if (works_out<kConfig>()) {
      if constexpr (kRole == BackwardRole::bias) {
        s_work.owned = {};
      } else {
        s_work.owned = owned_tile<kConfig, kRole>(params, static_cast<int>(blockIdx.x));
      }
    }
    __syncthreads();
    block.run();
  }
}

// Which modifiers an image has.
using plain = StaticProgram<0>;
using any = RuntimeProgram;
template <std::uint32_t kFeatures>
using features = StaticProgram<kFeatures>;

}  // namespace tessera::sm80

#define TESSERA_SM80_BACKWARD_INSTANCE(name, columns, tile_q, tile_k, warps, stages, blocks, resident, role, program,  \
                                       element)                                                                        \
  extern "C" __global__ void __launch_bounds__(32 * warps, blocks)                                                     \
      name(const __grid_constant__ tessera::sm80::BackwardParams params) {                                             \
    tessera::sm80::backward<tessera::sm80::BackwardConfig{columns, tile_q, tile_k, warps, stages, blocks, resident,    \
                                                          tessera::tile::kElementBytes<tessera::ptx::element>},        \
                            tessera::ptx::element, tessera::sm80::program, tessera::sm80::BackwardRole::role>(params); \
  }
