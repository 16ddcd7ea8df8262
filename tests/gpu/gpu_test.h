// What the tests on a GPU share.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cli/device_tensors.h"
#include "cli/problem_tensors.h"
#include "cli/run_plan.h"
#include "support/conforms.h"
#include "support/targets.h"
#include "support/tensor_ops.h"
#include "tessera/error.h"

namespace tessera::test {

inline constexpr Device kGpu{DeviceKind::cuda, 0};

// Skips, with the reason, where there is no GPU. Kernels that the build lacks are not compiled, which takes a second each,
// unless TESSERA_TEST_JIT is set: then every test has every kernel.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("TESSERA_TEST_JIT") == nullptr) ::setenv("TESSERA_JIT", "off", 1);
    if (const auto reason = gpu_missing()) GTEST_SKIP() << *reason;
  }
};

inline PlanOptions gpu_options() {
  PlanOptions options;
  options.device = kGpu;
  options.impl = "sm90";
  return options;
}

inline Plan gpu_plan(const Problem& problem, Pass pass) { return Plan::make(problem, pass, gpu_options()); }

// A build may leave kernels out. Then there is nothing to test, which is not a refusal of the Impl.
inline bool kernel_missing(const std::string& refusal) { return refusal.find("no kernel") != std::string::npos; }

// Why no plan can be made with these options; empty when one can.
inline std::string refusal(const Problem& problem, Pass pass, const PlanOptions& options) {
  try {
    Plan::make(problem, pass, options);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
    return error.what();
  }
}
inline std::string gpu_refusal(const Problem& problem, Pass pass) { return refusal(problem, pass, gpu_options()); }

// Whether this build lacks a kernel for either pass.
inline bool lacks_kernel(const Problem& problem) {
  return kernel_missing(gpu_refusal(problem, Pass::forward)) || kernel_missing(gpu_refusal(problem, Pass::backward));
}

// A bfloat16 problem with as many key heads as query heads.
inline Problem gpu_problem(std::int64_t queries, std::int64_t keys, std::int64_t heads, std::int64_t dim,
                           const Mask& mask = {}) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = queries;
  problem.seq_k = keys;
  problem.heads_q = problem.heads_kv = heads;
  problem.dim_qk = problem.dim_v = dim;
  problem.mask = mask;
  return problem;
}

}  // namespace tessera::test
