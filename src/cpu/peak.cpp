// The micro-benchmark of the FMA peak, compiled once for each instruction set.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string_view>

#include "cpu/flash_kernels.h"
#include "cpu/isa.h"
#include "tessera/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/peak.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::internal::peak::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#include "cpu/peak-inl.h"

}  // namespace tessera::internal::peak::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {

namespace {

using Measure = double (*)(std::int64_t steps, int runs);

Measure measure_of([[maybe_unused]] std::string_view isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa.starts_with("avx512") || isa.starts_with("amx")) {
    return internal::peak::N_AVX3::peak_flops_per_second;
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == "avx2") {
    return internal::peak::N_AVX2::peak_flops_per_second;
  }
#endif
#if HWY_TARGETS & HWY_SSE4
  if (isa == "sse4") {
    return internal::peak::N_SSE4::peak_flops_per_second;
  }
#endif
  return internal::peak::HWY_STATIC_DISPATCH(peak_flops_per_second);
}

}  // namespace

double measure_peak_flops(const std::string& isa) {
  // Runs of about 0.2 ms: short enough that some are not interrupted on a busy machine.
  constexpr std::int64_t kSteps = 100'000;
  constexpr int kRuns = 40;
  return measure_of(internal::select_kernels(isa).isa)(kSteps, kRuns);
}

}  // namespace tessera
#endif
