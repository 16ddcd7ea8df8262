// The support matrix (docs/support.md) is what GPUs do: what an Impl says that it takes makes a plan, unless it says what this
// device or this build lacks.
#include "plan/support.h"

#include "api/implementations.h"
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

class GpuSupport : public testing::TestWithParam<std::string> {};

TEST_P(GpuSupport, WhatIsTakenMakesAPlan) {
  if (const auto reason = test::gpu_missing(GetParam())) GTEST_SKIP() << *reason;
  int plans = 0;
  for (const internal::Impl* impl : internal::all_implementations()) {
    if (impl->name() != GetParam()) continue;
    for (const internal::SupportFeature& feature : internal::support_features()) {
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        if (!feature.has(pass) || internal::support_refusal(*impl, feature, pass)) continue;
        PlanOptions options = feature.options;
        options.device = {DeviceKind::cuda, 0};
        options.impl = GetParam();
        if (impl->lacks(feature.problem, pass, options)) continue;
        EXPECT_EQ(Plan::make(feature.problem, pass, options).facts().impl, GetParam()) << feature.name;
        ++plans;
      }
    }
  }
  EXPECT_GT(plans, 0);
}

INSTANTIATE_TEST_SUITE_P(Impls, GpuSupport, testing::Values("decode", "sm90", "sm80"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tessera
