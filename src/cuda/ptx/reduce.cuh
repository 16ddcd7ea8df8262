// Additions in global memory that return nothing, and counters between blocks (PTX ISA, "red").
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

// Whether four neighbours are added by one instruction (compute capability 9.0).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kVectorReduce = true;
#else
inline constexpr bool kVectorReduce = false;
#endif

// g_target[i] += r_values[i] for i = 0..3, in any order. `g_target` is a multiple of 16 bytes.
TESSERA_DEVICE void reduce_add_vector(float* g_target, const float* r_values) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(g_target), "f"(r_values[0]),
               "f"(r_values[1]), "f"(r_values[2]), "f"(r_values[3])
               : "memory");
}
TESSERA_DEVICE void reduce_add(float* g_target, float value) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(g_target), "f"(value) : "memory");
}

// Counters between blocks: what a thread wrote before it adds is seen by those that find the new value.
TESSERA_DEVICE void release_add(std::int32_t* g_counter, std::int32_t value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(g_counter), "r"(value) : "memory");
}
TESSERA_DEVICE std::int32_t relaxed_load(const std::int32_t* g_counter) {
  std::int32_t value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(g_counter));
  return value;
}
TESSERA_DEVICE std::int32_t acquire_load(const std::int32_t* g_counter) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(g_counter) : "memory");
  return value;
}

}  // namespace tessera::ptx
