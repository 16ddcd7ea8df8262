// The convenience forms do what a Problem and a Plan do.
#include "tessera/attention.h"

#include <gtest/gtest.h>

#include <vector>

#include "support/expect_error.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::ProblemTensors;

Problem make_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 20;
  problem.seq_k = 31;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = 12;
  problem.dim_v = 10;
  problem.mask = Mask::causal();
  problem.scale = 0.5F;
  problem.softcap = 8.0F;
  problem.dropout = {0.25, 4, 0, 0, 0, 0};
  return problem;
}

AttentionOptions options_of(const Problem& problem) {
  return {problem.mask, problem.scale, problem.softcap, problem.dropout};
}

TEST(Attention, ProblemOfReadsShapesAndOptions) {
  const ProblemTensors tensors(make_problem(), {});
  const ForwardTensors views = tensors.forward();
  EXPECT_EQ(problem_of(views.q, views.k, views.v, options_of(make_problem())), make_problem());
}

TEST(Attention, ProblemOfRefusesOtherRanks) {
  std::vector<float> data(64);
  const ConstTensorView matrix(data.data(), DType::float32, {8, 8});
  const ConstTensorView tensor(data.data(), DType::float32, {1, 8, 1, 8});
  test::expect_invalid({"k", "[8, 8]", "[batch, seq, heads, dim]"}, [&] { problem_of(tensor, matrix, tensor); });
}

TEST(Attention, TensorsThatDisagreeAreRefused) {
  std::vector<float> data(256);
  const TensorView a(data.data(), DType::float32, {1, 8, 1, 8}), b(data.data(), DType::float32, {1, 8, 1, 4});
  const TensorView c(data.data(), DType::float32, {2, 8, 1, 8});
  test::expect_invalid({"k", "[1, 8, 1, 4]", "[1, 8, 1, 8]"}, [&] { attention_forward(a, b, a, a); });
  test::expect_invalid({"k", "[2, 8, 1, 8]", "[1, 8, 1, 8]"}, [&] { attention_forward(a, c, a, a); });
}

TEST(Attention, ShortFormEqualsThePlan) {
  ProblemTensors tensors(make_problem(), {});
  const test::Outputs expected = test::run_pass(tensors, Plan::make(make_problem(), Pass::forward));
  tensors.poison_outputs();
  const ForwardTensors views = tensors.forward();
  attention_forward(views.q, views.k, views.v, views.out, views.lse, options_of(make_problem()));
  EXPECT_TRUE(test::bitwise_equal(expected, test::outputs_of(tensors, Pass::forward)));
}

TEST(Attention, ShortFormWithoutLse) {
  ProblemTensors tensors(make_problem(), {});
  const test::Outputs expected = test::run_pass(tensors, Plan::make(make_problem(), Pass::forward));
  tensors.poison_outputs();
  const ForwardTensors views = tensors.forward();
  attention_forward(views.q, views.k, views.v, views.out, {}, options_of(make_problem()));
  EXPECT_TRUE(test::bitwise_equal(expected[0].values, tensors.out.values()));
}

TEST(Attention, ProblemFormsEqualThePlan) {
  const Problem problem = make_problem();
  ProblemTensors tensors(problem, {});
  const test::Outputs forward = test::run_pass(tensors, Plan::make(problem, Pass::forward));
  const test::Outputs backward = test::run_pass(tensors, Plan::make(problem, Pass::backward));
  tensors.poison_outputs();
  attention_forward(problem, tensors.forward());
  attention_backward(problem, tensors.backward());
  EXPECT_TRUE(test::bitwise_equal(forward, test::outputs_of(tensors, Pass::forward)));
  EXPECT_TRUE(test::bitwise_equal(backward, test::outputs_of(tensors, Pass::backward)));
}

// Optional gradients may be left out, without a change in the others.
TEST(Attention, OptionalGradientsMayBeAbsent) {
  Problem problem = make_problem();
  problem.sinks = true;
  problem.bias_shape = {{1, 4, 20, 31}};
  ProblemTensors tensors(problem, {});
  attention_forward(problem, tensors.forward());
  attention_backward(problem, tensors.backward());
  const test::Outputs expected = test::outputs_of(tensors, Pass::backward);
  tensors.dq.poison();
  BackwardTensors views = tensors.backward();
  views.dbias = {};
  views.dsinks = {};
  attention_backward(problem, views);
  EXPECT_TRUE(test::bitwise_equal(expected, test::outputs_of(tensors, Pass::backward)));
}

}  // namespace
}  // namespace tessera
