// Instructions on registers: conversions, powers of two, shuffled transposes, the split of the register file.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

template <int kRegisters>
TESSERA_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
TESSERA_DEVICE void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// 2^x; -inf gives 0.
TESSERA_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x with an error of one unit in the last place; infinite for denormal x.
TESSERA_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// With a relative error of up to 2^-11.
TESSERA_DEVICE float tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two values rounded to 16 bits, the first in the low half.
template <class Element>
TESSERA_DEVICE std::uint32_t pack(float low, float high);

struct bfloat16 {};
struct float16 {};

template <>
TESSERA_DEVICE std::uint32_t pack<bfloat16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
TESSERA_DEVICE std::uint32_t pack<float16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

template <class Element>
TESSERA_DEVICE float2 unpack(std::uint32_t both);
template <>
TESSERA_DEVICE float2 unpack<bfloat16>(std::uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xFFFF0000U)};
}
template <>
TESSERA_DEVICE float2 unpack<float16>(std::uint32_t both) {
  float2 value;
  asm("{ .reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high; }"
      : "=f"(value.x), "=f"(value.y)
      : "r"(both));
  return value;
}

// Of pairs in 16 bits.
template <class Element>
TESSERA_DEVICE std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b);
template <>
TESSERA_DEVICE std::uint32_t multiply_pairs<bfloat16>(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
template <>
TESSERA_DEVICE std::uint32_t multiply_pairs<float16>(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// Transposes the 4 x 4 words that the four lanes of a quad hold: word k of lane c becomes word c of lane k.
TESSERA_DEVICE void transpose_quad(std::uint32_t& x0, std::uint32_t& x1, std::uint32_t& x2, std::uint32_t& x3) {
  const auto exchange = [](std::uint32_t& low, std::uint32_t& high, bool upper, int distance) {
    const std::uint32_t received = __shfl_xor_sync(0xFFFFFFFFU, upper ? low : high, distance);
    (upper ? low : high) = received;
  };
  const bool odd = (threadIdx.x & 1) != 0;
  const bool second = (threadIdx.x & 2) != 0;
  exchange(x0, x1, odd, 1);
  exchange(x2, x3, odd, 1);
  exchange(x0, x2, second, 2);
  exchange(x1, x3, second, 2);
}

// To 16 aligned bytes of global memory.
TESSERA_DEVICE void store_words(void* g_target, const std::uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(g_target), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

// From 4 aligned bytes of shared memory.
TESSERA_DEVICE std::uint32_t load_word(std::uint32_t s_address) {
  std::uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(s_address) : "memory");
  return word;
}

// Four 8 x 8 matrices of 16-bit elements to shared memory; lane l gives the address of row l % 8 of matrix l / 8.
TESSERA_DEVICE void store_matrices(std::uint32_t s_address, std::uint32_t r0, std::uint32_t r1, std::uint32_t r2,
                                   std::uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(s_address), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}

}  // namespace tessera::ptx
