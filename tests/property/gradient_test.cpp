// Gradients of the reference against central differences of its own forward pass, in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "support/functions.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using cli::HostTensor;
using cli::ProblemTensors;
using cli::TensorOptions;
using test::Values;

struct Case {
  std::string name;
  Problem problem;
  TensorOptions options;
};

Problem small_problem() {
  Problem problem;
  problem.dtype = DType::float64;
  problem.bias_dtype = DType::float64;
  problem.batch = 2;
  problem.seq_q = 4;
  problem.seq_k = 5;
  problem.heads_q = 2;
  problem.heads_kv = 1;
  problem.dim_qk = 3;
  problem.dim_v = 2;
  return problem;
}

void PrintTo(const Case& row, std::ostream* out) { *out << row.problem.describe(); }

Case make_case(std::string name, void (*change)(Problem&, TensorOptions&)) {
  Case result{std::move(name), small_problem(), {}};
  result.options.seed = 11;
  result.options.dlse = true;
  change(result.problem, result.options);
  return result;
}

std::vector<Case> cases() {
  return {
      make_case("dense", [](Problem&, TensorOptions& o) { o.dlse = false; }),
      make_case("dlse", [](Problem&, TensorOptions&) {}),
      make_case("causal", [](Problem& p, TensorOptions&) { p.mask = Mask::causal(); }),
      make_case("rows_that_see_nothing",
                [](Problem& p, TensorOptions&) { p.mask = Mask::window(1, 0, Alignment::at(-2)); }),
      make_case("scale", [](Problem& p, TensorOptions&) { p.scale = 1.7F; }),
      make_case("softcap", [](Problem& p, TensorOptions& o) { p.softcap = 0.8F, o.magnitude = 1.5; }),
      make_case("score_function", [](Problem& p, TensorOptions&) { p.score_function = test::gated_distance({0.7F}); }),
      make_case("score_function_after_softcap",
                [](Problem& p, TensorOptions& o) {
                  p.softcap = 0.8F, o.magnitude = 1.5;
                  p.score_function = test::gated_distance({0.7F});
                  p.bias_shape = {{1, 2, 4, 5}};
                }),
      make_case("score_function_that_caps",
                [](Problem& p, TensorOptions& o) { p.score_function = test::capped({0.8F}), o.magnitude = 1.5; }),
      make_case("mask_function", [](Problem& p, TensorOptions&) { p.mask_function = test::striped_heads(); }),
      make_case("alibi", [](Problem& p, TensorOptions&) { p.alibi = true; }),
      make_case("sinks", [](Problem& p, TensorOptions&) { p.sinks = true; }),
      make_case("bias", [](Problem& p, TensorOptions&) { p.bias_shape = {{2, 2, 4, 5}}; }),
      make_case("bias_broadcast", [](Problem& p, TensorOptions&) { p.bias_shape = {{1, 2, 1, 5}}; }),
      make_case("dropout", [](Problem& p, TensorOptions&) { p.dropout = {0.4, 5, 0, 0, 0, 0}; }),
      make_case("ragged", [](Problem& p, TensorOptions&) { set_ragged(p, {0, 3, 4, 4}, {0, 2, 5, 6}); }),
      make_case("blocks_of_bits",
                [](Problem& p, TensorOptions&) {
                  const std::vector<std::uint8_t> attends{1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0};
                  p.mask = Mask::blocks(BlockMask::from_dense({4, 5, 16, 16}, attends));
                }),
      make_case("key_lengths", [](Problem& p, TensorOptions&) { p.key_lengths = {5, 2}; }),
      make_case("everything",
                [](Problem& p, TensorOptions&) {
                  p.mask =
                      Mask::window(3, 1) & Mask::segments({{0, 0, 1, 1, 0, 1, 1, 1}, {0, 0, 1, 1, 1, 0, 0, 1, 1, 2}});
                  p.softcap = 2.0F;
                  p.alibi = p.sinks = true;
                  p.bias_shape = {{1, 1, 4, 5}};
                  p.dropout = {0.25, 7, 3, 4, 1, 2};
                  p.key_lengths = {5, 4};
                }),
  };
}

// sum(dO * O) + sum(dLSE * LSE) over the rows that see a key.
double loss(ProblemTensors& tensors, const Plan& forward) {
  forward.run(tensors.forward());
  const Values out = tensors.out.values(), dout = tensors.dout.values();
  double sum = 0;
  for (std::size_t n = 0; n < out.size(); ++n) sum += out[n] * dout[n];
  if (!tensors.dlse.absent()) {
    const Values lse = tensors.lse.values(), dlse = tensors.dlse.values();
    for (std::size_t n = 0; n < lse.size(); ++n) sum += std::isfinite(lse[n]) ? lse[n] * dlse[n] : 0.0;
  }
  return sum;
}

void check_input(ProblemTensors& tensors, const Plan& forward, HostTensor& input, const HostTensor& gradient,
                 const std::string& name) {
  constexpr double kStep = 1e-5;
  if (gradient.absent()) return;
  const Values analytic = gradient.values();
  const Values original = input.values();
  ASSERT_EQ(analytic.size(), original.size()) << name;
  for (std::size_t n = 0; n < original.size(); ++n) {
    Values moved = original;
    moved[n] = original[n] + kStep;
    test::assign(input, moved);
    const double above = loss(tensors, forward);
    moved[n] = original[n] - kStep;
    test::assign(input, moved);
    const double below = loss(tensors, forward);
    ASSERT_NEAR(analytic[n], (above - below) / (2 * kStep), 2e-8) << name << " element " << n;
  }
  test::assign(input, original);
}

class FiniteDifferences : public testing::TestWithParam<Case> {};

TEST_P(FiniteDifferences, ReferenceBackward) {
  ProblemTensors tensors(GetParam().problem, GetParam().options);
  PlanOptions options;
  options.impl = "reference";
  const Plan forward = Plan::make(tensors.problem(), Pass::forward, options);
  forward.run(tensors.forward());
  Plan::make(tensors.problem(), Pass::backward, options).run(tensors.backward());
  check_input(tensors, forward, tensors.q, tensors.dq, "dQ");
  check_input(tensors, forward, tensors.k, tensors.dk, "dK");
  check_input(tensors, forward, tensors.v, tensors.dv, "dV");
  check_input(tensors, forward, tensors.bias, tensors.dbias, "dbias");
  check_input(tensors, forward, tensors.sinks, tensors.dsinks, "dsinks");
}

INSTANTIATE_TEST_SUITE_P(Cases, FiniteDifferences, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera
