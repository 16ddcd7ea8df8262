// Elements of any dtype for kernels that are bound by memory: kWidth neighbours at once, 16 bytes and more of them.
#pragma once

#include "cuda/common/blocks.h"
#include "cuda/ptx/registers.cuh"

namespace tessera::tile {

// The numbers of DType.
inline constexpr int kFloat32 = 0;
inline constexpr int kBFloat16 = 1;

template <int kWidth>
struct Elements {
  float of[kWidth];
};

TESSERA_DEVICE float widen(std::uint16_t bits, int dtype) {
  return dtype == kBFloat16 ? ptx::unpack<ptx::bfloat16>(bits).x : ptx::unpack<ptx::float16>(bits).x;
}

template <class Element>
TESSERA_DEVICE Elements<8> widen(const uint4& words) {
  const std::uint32_t of[4] = {words.x, words.y, words.z, words.w};
  Elements<8> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 both = ptx::unpack<Element>(of[i]);
    result.of[2 * i] = both.x;
    result.of[2 * i + 1] = both.y;
  }
  return result;
}

template <class Element>
TESSERA_DEVICE uint4 narrow(const Elements<8>& values) {
  const auto pair = [&](int i) { return ptx::pack<Element>(values.of[2 * i], values.of[2 * i + 1]); };
  return {pair(0), pair(1), pair(2), pair(3)};
}

template <int kWidth>
TESSERA_DEVICE Elements<kWidth> load(const BlockView& view, std::int64_t offset) {
  const float* const g_floats = static_cast<const float*>(view.data) + offset;
  const std::uint16_t* const g_halves = static_cast<const std::uint16_t*>(view.data) + offset;
  if constexpr (kWidth == 8) {
    if (view.dtype == kFloat32) {
      const float4 low = *reinterpret_cast<const float4*>(g_floats);
      const float4 high = *reinterpret_cast<const float4*>(g_floats + 4);
      return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    }
    const uint4 words = *reinterpret_cast<const uint4*>(g_halves);
    return view.dtype == kBFloat16 ? widen<ptx::bfloat16>(words) : widen<ptx::float16>(words);
  } else {
    return {view.dtype == kFloat32 ? *g_floats : widen(*g_halves, view.dtype)};
  }
}

template <int kWidth>
TESSERA_DEVICE void store(const BlockView& view, std::int64_t offset, const Elements<kWidth>& values) {
  if (view.dtype == kFloat32) {
    float* const g_to = static_cast<float*>(view.data) + offset;
    if constexpr (kWidth == 8) {
      const auto& v = values.of;
      *reinterpret_cast<float4*>(g_to) = {v[0], v[1], v[2], v[3]};
      *reinterpret_cast<float4*>(g_to + 4) = {v[4], v[5], v[6], v[7]};
    } else {
      *g_to = values.of[0];
    }
    return;
  }
  std::uint16_t* const g_to = static_cast<std::uint16_t*>(view.data) + offset;
  const bool bfloat16 = view.dtype == kBFloat16;
  if constexpr (kWidth == 8) {
    *reinterpret_cast<uint4*>(g_to) = bfloat16 ? narrow<ptx::bfloat16>(values) : narrow<ptx::float16>(values);
  } else {
    const float value = values.of[0];
    *g_to = static_cast<std::uint16_t>(bfloat16 ? ptx::pack<ptx::bfloat16>(value, 0.0F)
                                                : ptx::pack<ptx::float16>(value, 0.0F));
  }
}

// Where an index of the first three axes starts.
struct RowIndex {
  std::uint32_t first, second, third;
};

TESSERA_DEVICE RowIndex row_index(std::uint32_t row, const std::int64_t* shape) {
  const auto third = static_cast<std::uint32_t>(shape[2]);
  const auto second = static_cast<std::uint32_t>(shape[1]);
  const std::uint32_t rest = row / third;
  return {rest / second, rest % second, row % third};
}

TESSERA_DEVICE std::int64_t offset_of(const BlockView& view, const RowIndex& at) {
  return at.first * view.strides[0] + at.second * view.strides[1] + at.third * view.strides[2];
}

}  // namespace tessera::tile
