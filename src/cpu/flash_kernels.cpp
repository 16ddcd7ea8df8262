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
#include "cpu/isa.h"
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
#include "cpu/micro_kernel-inl.h"
#include "cpu/vector_math-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/scores-inl.h"
#include "cpu/flash_forward-inl.h"
#include "cpu/flash_backward-inl.h"
#include "cpu/flash_steps-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::float32_products
HWY_AFTER_NAMESPACE();

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::internal::HWY_NAMESPACE::bfloat16_products {

namespace hn = hwy::HWY_NAMESPACE;

// Products of bfloat16 pairs, summed in float32 (VDPBF16PS). A unit is two neighbours along the depth.
struct Arithmetic {
  using Unit = std::uint32_t;
  using Element = std::uint16_t;
  using Tag = hn::ScalableTag<float>;
  using Vector = __m512;
  static constexpr std::int64_t kLanes = 16;
  static constexpr std::int64_t kDepthUnit = 2;
  static constexpr int kVectors = 2;
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
  static HWY_INLINE Unit pack(Element even, Element odd) { return even | (static_cast<Unit>(odd) << 16); }
  // Two vectors of neighbours along a row, as 16 pairs.
  static HWY_INLINE void store_pairs(hn::Vec<Tag> first, hn::Vec<Tag> second, Unit* out) {
    _mm512_storeu_si512(out, (__m512i)(_mm512_cvtne2ps_pbh(second.raw, first.raw)));
  }
  static HWY_INLINE void pair_columns(const float* row, std::int64_t count, Unit* out) {
    for (std::int64_t j = 0; j < count; j += 32) {
      _mm512_storeu_si512(out + j / 2,
                          (__m512i)(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + j + 16), _mm512_loadu_ps(row + j))));
    }
  }
  // Element j of both rows as pair j.
  static HWY_INLINE void pair_rows(const float* even, const float* odd, std::int64_t count, Unit* out) {
    for (std::int64_t j = 0; j < count; j += 16) {
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)(_mm512_cvtneps_pbh(_mm512_loadu_ps(even + j))));
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)(_mm512_cvtneps_pbh(_mm512_loadu_ps(odd + j))));
      _mm512_storeu_si512(out + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
};

// clang-format off: each needs those before it
#include "cpu/micro_kernel-inl.h"
#include "cpu/vector_math-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/scores-inl.h"
#include "cpu/flash_forward-inl.h"
#include "cpu/flash_backward-inl.h"
#include "cpu/flash_steps-inl.h"
// clang-format on

}  // namespace tessera::internal::HWY_NAMESPACE::bfloat16_products
HWY_POP_ATTRIBUTES
#endif

#if HWY_ONCE
namespace tessera::internal {

namespace {

#if HWY_TARGETS & HWY_AVX3
constexpr CpuKernels kAvx512Bf16Products = N_AVX3::bfloat16_products::kernels_table("avx512_bf16", nullptr);
constexpr CpuKernels kAvx512Bf16 = N_AVX3::float32_products::kernels_table("avx512_bf16", &kAvx512Bf16Products);
constexpr CpuKernels kAvx512 = N_AVX3::float32_products::kernels_table("avx512", nullptr);
#endif
#if HWY_TARGETS & HWY_AVX2
constexpr CpuKernels kAvx2 = N_AVX2::float32_products::kernels_table("avx2", nullptr);
#endif
#if HWY_TARGETS & HWY_SSE4
constexpr CpuKernels kSse4 = N_SSE4::float32_products::kernels_table("sse4", nullptr);
#endif
#if HWY_TARGETS & HWY_NEON
constexpr CpuKernels kNeon = N_NEON::float32_products::kernels_table("neon", nullptr);
#endif
#if HWY_TARGETS & HWY_EMU128
constexpr CpuKernels kPortable = N_EMU128::float32_products::kernels_table("portable", nullptr);
#elif HWY_TARGETS & HWY_SCALAR
constexpr CpuKernels kPortable = N_SCALAR::float32_products::kernels_table("portable", nullptr);
#endif

std::vector<const CpuKernels*> find_kernels() {
  [[maybe_unused]] const std::int64_t targets = HWY_SUPPORTED_TARGETS;
  std::vector<const CpuKernels*> found;
#if HWY_TARGETS & HWY_AVX3
  if ((targets & HWY_AVX3) != 0) {
    if (__builtin_cpu_supports("avx512bf16") != 0) {
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
