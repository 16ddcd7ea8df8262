// Score programs whose kernels a build has ahead of time: they run where nothing can be compiled.
#include <algorithm>

#include "cuda/kernel.h"
#include "gpu/program_rows.h"

namespace tessera {
namespace {

class GpuAheadOfTime : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    ::setenv("TESSERA_JIT", "off", 1);
  }
};

bool has_kernel(const PlanFacts& facts, const std::string& name) {
  return std::any_of(facts.kernels.begin(), facts.kernels.end(),
                     [&](const KernelFacts& kernel) { return kernel.name == name && !kernel.compiled; });
}

// Both passes of the rows of the forward pass, gradients in any order for those of the backward pass.
TEST_F(GpuAheadOfTime, ProgramsMeetTheContractWithoutACompiler) {
  int images = 0;
  for (const test::ProgramImage& row : test::program_images()) {
    SCOPED_TRACE(row.name);
    const std::string refusal = test::gpu_refusal(row.problem, row.pass);
    if (std::string_view(TESSERA_TEST_KERNELS) != "all" && !internal::Kernel::exists(row.name)) continue;
    ASSERT_EQ(refusal, "");
    const PlanFacts facts = test::gpu_plan(row.problem, row.pass).facts();
    EXPECT_EQ(facts.impl, "sm90");
    EXPECT_TRUE(has_kernel(facts, row.name));
    test::expect_conforms(row.problem, {}, test::gpu_targets(), row.pass == Pass::forward);
    ++images;
  }
  if (images == 0) GTEST_SKIP() << "this build has none";
}

// Head dims between those of the tables take the next wider one.
TEST_F(GpuAheadOfTime, OtherHeadDimsMeetTheContractWithoutACompiler) {
  int problems = 0;
  for (const std::int64_t dim : {40, 72, 112}) {
    Problem problem = test::gpu_problem(300, 301, 2, dim, Mask::causal());
    problem.softcap = 30;
    const std::string refusal = test::gpu_refusal(problem, Pass::forward);
    if (std::string_view(TESSERA_TEST_KERNELS) != "all" && test::kernel_missing(refusal)) continue;
    ASSERT_EQ(refusal, "");
    test::expect_conforms(problem, {}, test::gpu_targets());
    ++problems;
  }
  if (problems == 0) GTEST_SKIP() << "this build has none of the kernels";
}

}  // namespace
}  // namespace tessera
