// Asynchronous copies from global to shared memory (PTX ISA, "cp.async"), of compute capability 8.0.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

// The first `valid` of kBytes (4, 8 or 16) bytes; the others arrive as zeros. Both addresses are multiples of kBytes.
template <int kBytes>
TESSERA_DEVICE void copy_async(std::uint32_t s_target, const void* g_source, int valid) {
  if constexpr (kBytes == 16) {  // past the first-level cache, which nothing reads twice from
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s_target), "l"(g_source), "r"(valid) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(s_target), "l"(g_source), "n"(kBytes), "r"(valid)
                 : "memory");
  }
}

// All of them.
template <int kBytes>
TESSERA_DEVICE void copy_async(std::uint32_t s_target, const void* g_source) {
  static_assert(kBytes == 16);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s_target), "l"(g_source) : "memory");
}

// What is too narrow for an asynchronous copy.
TESSERA_DEVICE void store_half(std::uint32_t s_target, std::uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(s_target), "h"(value) : "memory");
}

TESSERA_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kPending of this thread's latest groups are under way.
template <int kPending>
TESSERA_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace tessera::ptx
