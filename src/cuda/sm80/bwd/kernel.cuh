// The backward kernels of the sm80 family. What a block owns, and sums over the other tiles, is its role.
#pragma once

#include "cuda/sm80/bwd/block.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
TESSERA_DEVICE void backward(const BackwardParams& params) {
  extern __shared__ __align__(1024) std::uint8_t s_raw[];
  BackwardBlock<kConfig, Element, Program, kRole> block(params, ptx::shared_address(s_raw));
  // In shared memory, since registers are what these kernels lack.
  static_assert(sizeof(OwnedTile) <= BackwardConfig::kOwnedTileBytes);
  auto& s_owned = *reinterpret_cast<OwnedTile*>(s_raw + kConfig.owned_tile_offset(kRole));
  const auto run = [&](const OwnedTile& owned) {
    if (threadIdx.x == 0) {
      s_owned = owned;
    }
    __syncthreads();
    block.run(s_owned);
  };
  if constexpr (kRole == BackwardRole::joint) {
    for (JointItems<kConfig> items(params); items.valid(); items.advance()) {
      if (const OwnedTile owned = items.owned(); owned.tile < params.tiles_of_head) {
        run(owned);
        __syncthreads();  // shared memory is read
      }
    }
  } else if constexpr (kRole == BackwardRole::bias) {
    run(OwnedTile{});
  } else {
    run(owned_tile<kConfig, kRole>(params, static_cast<int>(blockIdx.x)));
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
