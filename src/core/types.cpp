#include "tessera/types.h"

#include <array>
#include <utility>

#include "core/fail.h"

namespace tessera {

std::int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  internal::fail_argument("dtype", static_cast<std::int64_t>(dtype), "float32, bfloat16, float16, float64");
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return "float64";
    case DType::int32:
      return "int32";
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
  }
  return "unknown";
}

DType dtype_from_name(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, DType>, 8> kNames{{
      {"float32", DType::float32},
      {"f32", DType::float32},
      {"bfloat16", DType::bfloat16},
      {"bf16", DType::bfloat16},
      {"float16", DType::float16},
      {"f16", DType::float16},
      {"float64", DType::float64},
      {"f64", DType::float64},
  }};
  for (const auto& [candidate, dtype] : kNames) {
    if (candidate == name) {
      return dtype;
    }
  }
  internal::fail_argument("dtype", name, "float32, bfloat16, float16, float64");
}

std::string_view float32_products_name(Float32Products products) {
  return products == Float32Products::exact ? "exact" : "tf32";
}

Float32Products float32_products_from_name(std::string_view name) {
  for (const Float32Products products : {Float32Products::exact, Float32Products::tf32}) {
    if (name == float32_products_name(products)) {
      return products;
    }
  }
  internal::fail_argument("float32_products", name, "exact, tf32");
}

std::string_view pass_name(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }

}  // namespace tessera
