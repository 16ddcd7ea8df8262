// Tensors whose elements lie more than 2^31 elements apart: the memory is reserved, and a few pages of it are touched.
#include <gtest/gtest.h>
#include <cstdint>
#include <string>

#include "support/far_tensors.h"
#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::ProblemTensors;
using test::FarTensors;
using test::Reservation;
using test::Target;

// The axis of a [batch, seq, heads, dim] tensor that is far apart; of LSE the one with the same meaning.
class Addressing : public testing::TestWithParam<int> {};

TEST_P(Addressing, ElementsBeyondThirtyTwoBits) {
  const int axis = GetParam();
  const int lse_axis = axis == 0 ? 0 : 3 - axis;
  Problem problem;
  problem.batch = problem.seq_q = problem.seq_k = problem.heads_q = problem.heads_kv = 3;
  problem.dim_qk = problem.dim_v = 8;
  problem.mask = Mask::causal();
  const auto bytes = static_cast<std::size_t>(4 * (2 * FarTensors::kFarStride) + (1 << 20));
  const Reservation memory(bytes);
  ASSERT_TRUE(memory.valid()) << "no " << bytes << " bytes of address space";
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors near(problem, {});
    const test::Outputs expected = test::run_both(near, target.options());

    ProblemTensors result(problem, {});
    FarTensors layout(memory.data(), axis);
    FarTensors lse_layout(static_cast<char*>(memory.data()) + (1 << 19), lse_axis);
    BackwardTensors far;
    far.q = layout.place(near.q);
    far.k = layout.place(near.k);
    far.v = layout.place(near.v);
    far.dout = layout.place(near.dout);
    const TensorView out = layout.place(result.out), lse = lse_layout.place(result.lse);
    far.dq = layout.place(result.dq);
    far.dk = layout.place(result.dk);
    far.dv = layout.place(result.dv);
    test::make_plan(problem, Pass::forward, target).run(ForwardTensors{far.q, far.k, far.v, out, lse, {}});
    far.out = out;
    far.lse = lse;
    test::make_plan(problem, Pass::backward, target).run(far);

    FarTensors::copy(out, result.out.view());
    FarTensors::copy(lse, result.lse.view());
    FarTensors::copy(far.dq, result.dq.view());
    FarTensors::copy(far.dk, result.dk.view());
    FarTensors::copy(far.dv, result.dv.view());
    test::Outputs actual = test::outputs_of(result, Pass::forward);
    for (test::NamedValues& output : test::outputs_of(result, Pass::backward)) actual.push_back(std::move(output));
    EXPECT_TRUE(test::bitwise_equal(actual, expected));
  }
}

INSTANTIATE_TEST_SUITE_P(Axes, Addressing, testing::Values(0, 1, 2), [](const auto& info) {
  return std::string(info.param == 0 ? "batch" : info.param == 1 ? "sequence" : "heads");
});

}  // namespace
}  // namespace tessera
