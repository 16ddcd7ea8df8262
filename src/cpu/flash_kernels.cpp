// The CPU kernels, compiled once for each instruction set by Highway's foreach_target.

#include "cpu/flash_kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numbers>

#include "core/fail.h"
#include "core/half.h"
#include "core/philox.h"
#include "cpu/amx.h"
#include "cpu/isa.h"
#include "cpu/product.h"
#include "plan/rows.h"
#include "plan/score_function.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/flash_kernels.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::internal::HWY_NAMESPACE::float32_products {

namespace hn = hwy::HWY_NAMESPACE;

struct Arithmetic {
  using Unit = float;
  using Element = float;
  using Tag = hn::ScalableTag<float>;
  using Vector = hn::Vec<Tag>;
  static constexpr std::int64_t kLanes = HWY_LANES(float);
  static constexpr std::int64_t kDepthUnit = 1;
  static constexpr int kPlanes = 1;
  // 24 accumulators in 32 registers, 12 in 16.
  static constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64;
  static constexpr int kVectors = HWY_ARCH_ARM_A64 ? 4 : 2;
  static constexpr int kRows = kManyRegisters && !HWY_ARCH_ARM_A64 ? 12 : 6;

  static HWY_INLINE Vector zero() { return hn::Zero(Tag()); }
  static HWY_INLINE Vector load(const Unit* p) { return hn::LoadU(Tag(), p); }
  static HWY_INLINE Vector broadcast(const Unit* p) { return hn::Set(Tag(), *p); }
  static HWY_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return hn::MulAdd(a, b, c); }
  static HWY_INLINE Vector load_c(const float* p) { return hn::LoadU(Tag(), p); }
  static HWY_INLINE void store_c(Vector v, float* p) { hn::StoreU(v, Tag(), p); }
  static HWY_INLINE Vector add(Vector a, Vector b) { return hn::Add(a, b); }
  static HWY_INLINE Vector scale_add(float scale, Vector c, Vector sum) {
    return hn::MulAdd(hn::Set(Tag(), scale), c, sum);
  }
  static HWY_INLINE Unit pack(Element even, Element /*odd*/) { return even; }
};

// clang-format off: each needs those before it
#include "cpu/product-inl.h"
#include "cpu/micro_kernel-inl.h"
#include "cpu/flash-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::float32_products
HWY_AFTER_NAMESPACE();

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::internal::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#include "cpu/bfloat16_pairs-inl.h"

}  // namespace tessera::internal::HWY_NAMESPACE

namespace tessera::internal::HWY_NAMESPACE::bfloat16_products {

// Products of bfloat16 pairs, summed in float32 (VDPBF16PS).
struct Arithmetic : RoundedPairs {
  using Vector = __m512;
  static constexpr int kRows = 12;

  static HWY_INLINE Vector zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Vector load(const Unit* p) { return _mm512_loadu_ps(p); }
  static HWY_INLINE Vector broadcast(const Unit* p) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p)));
  }
  static HWY_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
    return _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b));
  }
  static HWY_INLINE Vector load_c(const float* p) { return _mm512_loadu_ps(p); }
  static HWY_INLINE void store_c(Vector v, float* p) { _mm512_storeu_ps(p, v); }
  static HWY_INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static HWY_INLINE Vector scale_add(float scale, Vector c, Vector sum) {
    return _mm512_fmadd_ps(_mm512_set1_ps(scale), c, sum);
  }
};

// clang-format off: each needs those before it
#include "cpu/product-inl.h"
#include "cpu/micro_kernel-inl.h"
#include "cpu/flash-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::bfloat16_products
HWY_POP_ATTRIBUTES

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16,amx-tile,amx-bf16")
namespace tessera::internal::HWY_NAMESPACE::bfloat16_tiles {

// Products of bfloat16 pairs in the tile registers of AMX.
using Arithmetic = RoundedPairs;

// clang-format off: each needs those before it
#include "cpu/product-inl.h"
#include "cpu/matrix_tiles-inl.h"
#include "cpu/flash-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::bfloat16_tiles

namespace tessera::internal::HWY_NAMESPACE::float32_tiles {

// Products of float32 in the tile registers of AMX, by the products of their parts.
using Arithmetic = SplitPairs;

// clang-format off: each needs those before it
#include "cpu/product-inl.h"
#include "cpu/joined_operands-inl.h"
#include "cpu/matrix_tiles-inl.h"
#include "cpu/flash-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::float32_tiles
HWY_POP_ATTRIBUTES
#endif

#if HWY_ONCE
namespace tessera::internal {

namespace {

// Kernels with float32 products, and with bfloat16 products where they are given.
#if HWY_TARGETS & HWY_AVX3
constexpr ExpectedShare kByFma{};
constexpr ExpectedShare kByTiles{2.7, 2.5};
constexpr ExpectedShare kByTilesOfParts{1.1, 0.9};
constexpr CpuKernels kAvx512Bf16Products = N_AVX3::bfloat16_products::kernels_table("avx512_bf16", kByFma, nullptr);
constexpr CpuKernels kAvx512Bf16 = N_AVX3::float32_products::kernels_table("avx512_bf16", kByFma, &kAvx512Bf16Products);
constexpr CpuKernels kAvx512 = N_AVX3::float32_products::kernels_table("avx512", kByFma, nullptr);
// Packing K and V for the tiles has to be worth the while.
std::int64_t queries_of_key_head(const Problem& problem) { return problem.seq_q * problem.group_size(); }
bool tiles_pay(const Problem& problem, Pass /*pass*/) { return queries_of_key_head(problem) >= 16; }
bool tiles_of_parts_pay(const Problem& problem, Pass pass) {
  const bool narrow = std::max(problem.dim_qk, problem.dim_v) <= 64;
  return queries_of_key_head(problem) >= 256 && (narrow || pass == Pass::forward);
}
constexpr CpuKernels kAmxBf16Products =
    N_AVX3::bfloat16_tiles::kernels_table("amx_bf16", kByTiles, nullptr, &kAvx512Bf16Products, &tiles_pay);
constexpr CpuKernels kAmxBf16 = N_AVX3::float32_tiles::kernels_table("amx_bf16", kByTilesOfParts, &kAmxBf16Products,
                                                                     &kAvx512Bf16, &tiles_of_parts_pay);
#endif
#if HWY_TARGETS & HWY_AVX2
constexpr CpuKernels kAvx2 = N_AVX2::float32_products::kernels_table("avx2", {}, nullptr);
#endif
#if HWY_TARGETS & HWY_SSE4
constexpr CpuKernels kSse4 = N_SSE4::float32_products::kernels_table("sse4", {}, nullptr);
#endif
#if HWY_TARGETS & HWY_NEON
constexpr CpuKernels kNeon = N_NEON::float32_products::kernels_table("neon", {}, nullptr);
#endif
#if HWY_TARGETS & HWY_EMU128
constexpr CpuKernels kPortable = N_EMU128::float32_products::kernels_table("portable", {}, nullptr);
#elif HWY_TARGETS & HWY_SCALAR
constexpr CpuKernels kPortable = N_SCALAR::float32_products::kernels_table("portable", {}, nullptr);
#endif

std::vector<const CpuKernels*> find_kernels() {
  [[maybe_unused]] const std::int64_t targets = HWY_SUPPORTED_TARGETS;
  std::vector<const CpuKernels*> found;
#if HWY_TARGETS & HWY_AVX3
  if ((targets & HWY_AVX3) != 0) {
    if (__builtin_cpu_supports("avx512bf16") != 0) {
      if (amx_bf16_usable()) {
        found.push_back(&kAmxBf16);
      }
      found.push_back(&kAvx512Bf16);
    }
    found.push_back(&kAvx512);
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((targets & HWY_AVX2) != 0) {
    found.push_back(&kAvx2);
  }
#endif
#if HWY_TARGETS & HWY_SSE4
  if ((targets & HWY_SSE4) != 0) {
    found.push_back(&kSse4);
  }
#endif
#if HWY_TARGETS & HWY_NEON
  found.push_back(&kNeon);
#endif
#if HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR)
  found.push_back(&kPortable);
#endif
  return found;
}

}  // namespace

const std::vector<const CpuKernels*>& available_kernels() {
  static const std::vector<const CpuKernels*> kernels = find_kernels();
  return kernels;
}

}  // namespace tessera::internal
#endif
