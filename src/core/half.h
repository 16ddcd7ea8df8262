// Scalar conversions between float32 and the 16-bit storage types, rounding to nearest even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "tessera/types.h"

namespace tessera::internal {

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
    return static_cast<std::uint16_t>((bits >> 16) | 0x0040U);
  }
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  if (magnitude >= 0x7C00U) {
    return std::bit_cast<float>(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13));
  }
  // Shifted into place the exponent is 112 too small; one multiplication mends it for subnormals too.
  return std::bit_cast<float>(
      sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000U)));
}

inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {
    return static_cast<std::uint16_t>(sign | 0x7E00U);
  }
  if (magnitude >= 0x477FF000U) {  // rounds to 65536 or more
    return static_cast<std::uint16_t>(sign | 0x7C00U);
  }
  if (magnitude < 0x38800000U) {  // subnormal: let a float addition do the rounding
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3F000000U));
  }
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13));
}

// One element of any dtype, as double; exact.
inline double load_element(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::float64:
      return static_cast<const double*>(data)[index];
    case DType::float32:
      return static_cast<const float*>(data)[index];
    case DType::bfloat16:
      return bfloat16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::float16:
      return float16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::int32:
      return static_cast<const std::int32_t*>(data)[index];
  }
  return 0.0;
}

inline void store_element(void* data, DType dtype, std::int64_t index, double value) {
  switch (dtype) {
    case DType::float64:
      static_cast<double*>(data)[index] = value;
      return;
    case DType::float32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      return;
    case DType::bfloat16:
      static_cast<std::uint16_t*>(data)[index] = float_to_bfloat16(static_cast<float>(value));
      return;
    case DType::float16:
      static_cast<std::uint16_t*>(data)[index] = float_to_float16(static_cast<float>(value));
      return;
    case DType::int32:
      static_cast<std::int32_t*>(data)[index] = static_cast<std::int32_t>(value);
      return;
  }
}

}  // namespace tessera::internal
