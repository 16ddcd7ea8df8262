// What every device header needs.
#pragma once

#include <cstdint>

#define TESSERA_DEVICE __device__ __forceinline__

namespace tessera::ptx {

// The compiler's __is_same, which the run-time one lacks.
template <class A, class B>
inline constexpr bool kSame = false;
template <class A>
inline constexpr bool kSame<A, A> = true;

// The address in the shared window of this block, as instructions take it.
TESSERA_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same value, from which the compiler derives nothing ahead of time: what is computed from it is computed where it is used
// and does not occupy registers through a loop.
TESSERA_DEVICE std::uint32_t fresh(std::uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace tessera::ptx
