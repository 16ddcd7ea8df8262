// Element types and devices.
#pragma once

#include <cstdint>
#include <string_view>

namespace tessera {

// int32 is that of lengths and page tables, and of nothing that is computed with.
enum class DType : std::uint8_t { float32, bfloat16, float16, float64, int32 };

// Bytes of one element.
std::int64_t dtype_bytes(DType dtype);
// "float32", "bfloat16", "float16", "float64" or "int32".
std::string_view dtype_name(DType dtype);
// The inverse of dtype_name for what is computed with, which also takes the short forms "f32", "bf16", "f16" and "f64".
// Throws Error(invalid_argument) for any other name.
DType dtype_from_name(std::string_view name);

// How products of float32 inputs are computed: within the contract of float32, or of factors that may be rounded to the 11 bits
// of TF32 first, where an Impl has tensor cores for that (docs/numerics.md).
enum class Float32Products : std::uint8_t { exact, tf32 };
// "exact" or "tf32".
std::string_view float32_products_name(Float32Products products);
// The inverse. Throws Error(invalid_argument) for any other name.
Float32Products float32_products_from_name(std::string_view name);

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  std::int32_t index = 0;
  bool operator==(const Device&) const = default;
};

// Which of the two computations a plan is for.
enum class Pass : std::uint8_t { forward, backward };
std::string_view pass_name(Pass pass);

}  // namespace tessera
