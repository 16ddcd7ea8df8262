// Inputs far larger or smaller than one, under a scale that makes up for it: errors are relative.
#include <gtest/gtest.h>

#include <cmath>

#include "support/conforms.h"
#include "support/targets.h"

namespace tessera {
namespace {

class Magnitude : public testing::TestWithParam<double> {};

TEST_P(Magnitude, Conforms) {
  Problem problem;
  problem.batch = 1;
  problem.seq_q = 50;
  problem.seq_k = 190;
  problem.heads_q = 2;
  problem.heads_kv = 1;
  problem.dim_qk = 40;
  problem.dim_v = 72;
  problem.scale = static_cast<float>(1.0 / (std::sqrt(40.0) * GetParam() * GetParam()));
  cli::TensorOptions tensors;
  tensors.magnitude = GetParam();
  test::expect_conforms(problem, tensors, test::all_targets());
}

INSTANTIATE_TEST_SUITE_P(Values, Magnitude, testing::Values(1e-12, 1e-4, 1e4, 1e12));

}  // namespace
}  // namespace tessera
