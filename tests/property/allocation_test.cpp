// What Plan::run allocates: nothing with a workspace of the caller, exactly workspace_bytes() without.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/run_plan.h"
#include "support/allocation_counter.h"
#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::ProblemTensors;
using test::Count;
using test::counted;
using test::Target;

Problem make_problem(std::int64_t length) {
  Problem problem;
  problem.seq_q = problem.seq_k = length;
  problem.heads_q = 2;
  problem.dim_qk = problem.dim_v = 32;
  problem.mask = Mask::causal();
  problem.bias_shape = {{1, 2, 1, length}};
  problem.sinks = problem.alibi = true;
  return problem;
}

template <class Tensors>
void expect_frugal(const Plan& plan, const Tensors& tensors) {
  const cli::PlanWorkspace workspace(plan);
  plan.run(tensors, workspace.bytes());  // threads are started once
  const Count with = counted([&] { plan.run(tensors, workspace.bytes()); });
  EXPECT_EQ(with.allocations, 0) << with.bytes << " bytes";
  plan.run(tensors);
  const Count without = counted([&] { plan.run(tensors); });
  EXPECT_EQ(without.allocations, plan.workspace_bytes() > 0 ? 1 : 0);
  // aligned operator new may round the size up to the alignment.
  EXPECT_GE(without.bytes, plan.workspace_bytes());
  EXPECT_LE(without.bytes, plan.workspace_bytes() + static_cast<std::int64_t>(kWorkspaceAlignment));
}

TEST(Allocation, TheCounterCounts) {
  const Count nothing = counted([] {});
  EXPECT_EQ(nothing.allocations, 0);
  const Count some = counted([] {
    const auto one = std::make_unique<char[]>(1000);
    const std::vector<std::byte> other(500);
    static_cast<std::byte*>(::operator new(640, std::align_val_t{64}));
  });
  EXPECT_EQ(some.allocations, 3);
  EXPECT_EQ(some.bytes, 2140);
  EXPECT_EQ(some.largest, 1000);
}

TEST(Allocation, RunAllocatesNothingButItsWorkspace) {
  for (const std::int64_t length : {100, 700}) {
    ProblemTensors tensors(make_problem(length), {});
    for (Target target : test::flash_targets()) {
      target.threads = 2;
      SCOPED_TRACE(target.name());
      expect_frugal(test::make_plan(tensors.problem(), Pass::forward, target), tensors.forward());
      expect_frugal(test::make_plan(tensors.problem(), Pass::backward, target), tensors.backward());
    }
  }
}

// Peak extra memory is what the plan says, and at 8 times the length at most 8 times as much: no score matrix hides.
TEST(Allocation, WorkspaceOfFlashIsLinear) {
  for (Target target : test::flash_targets()) {
    SCOPED_TRACE(target.name());
    target.threads = 2;
    // Of the score matrix. With AMX, K and V are packed as three planes of bfloat16, half as large again as floats.
    const double most = target.isa == "amx_bf16" ? 0.011 : 0.01;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const std::int64_t small = test::make_plan(make_problem(8192), pass, target).workspace_bytes();
      const std::int64_t large = test::make_plan(make_problem(65536), pass, target).workspace_bytes();
      EXPECT_LE(large, 8 * small) << pass_name(pass);
      EXPECT_LT(static_cast<double>(large), most * 65536 * 65536 * 4) << pass_name(pass);
    }
  }
}

}  // namespace
}  // namespace tessera
