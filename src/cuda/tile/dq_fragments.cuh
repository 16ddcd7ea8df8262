// dQ of a tile of queries as a float32 sum in global memory, in the order in which registers hold it: every instruction of a
// warp writes whole lines.
#pragma once

#include "cuda/ptx/reduce.cuh"

namespace tessera::tile {

// Fragment `index` of a thread: four elements. Where no instruction takes all four, they are kThreads apart.
template <int kThreads>
struct DqFragments {
  static constexpr int kNeighbour = ptx::kVectorReduce ? 1 : kThreads;
  TESSERA_DEVICE static int at(int index, int thread) {
    return ptx::kVectorReduce ? (index * kThreads + thread) * 4 : 4 * index * kThreads + thread;
  }
  TESSERA_DEVICE static void store(float* g_tile, int index, const float* r_values) {
    float* const g_target = g_tile + at(0, static_cast<int>(threadIdx.x)) + at(index, 0);  // one address for all
    if constexpr (ptx::kVectorReduce) {
      *reinterpret_cast<float4*>(g_target) = float4{r_values[0], r_values[1], r_values[2], r_values[3]};
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        g_target[i * kNeighbour] = r_values[i];
      }
    }
  }
  TESSERA_DEVICE static void add(float* g_tile, int index, const float* r_values) {
    float* const g_target = g_tile + at(0, static_cast<int>(threadIdx.x)) + at(index, 0);  // one address for all
    if constexpr (ptx::kVectorReduce) {
      ptx::reduce_add_vector(g_target, r_values);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        ptx::reduce_add(g_target + i * kNeighbour, r_values[i]);
      }
    }
  }
};

}  // namespace tessera::tile
