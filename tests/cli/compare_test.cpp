#include "cli/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cli/random_problem.h"
#include "cli/run_plan.h"
#include "support/expect_error.h"

namespace tessera::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Compare, RelativeErrorNorm) {
  const Difference difference = compare(std::vector<double>{3, 0, 4.5}, std::vector<double>{3, 0, 4}, DType::float32);
  EXPECT_DOUBLE_EQ(difference.error_norm, 0.5);
  EXPECT_DOUBLE_EQ(difference.reference_norm, 5);
  EXPECT_DOUBLE_EQ(difference.relative(), 0.1);
  EXPECT_FALSE(difference.mismatch.has_value());
}

TEST(Compare, ZeroAgainstZeroIsRightAndAnythingElseIsNot) {
  EXPECT_EQ(compare(std::vector<double>{0, 0}, std::vector<double>{0, 0}, DType::float32).relative(), 0);
  EXPECT_EQ(compare(std::vector<double>{0, 1e-30}, std::vector<double>{0, 0}, DType::float32).relative(), kInfinity);
  EXPECT_EQ(compare({}, {}, DType::float32).relative(), 0);
}

TEST(Compare, NonFinitePositionsComeFirst) {
  const std::vector<double> reference{1, kInfinity, kNaN, -kInfinity};
  EXPECT_FALSE(compare(reference, reference, DType::float32).mismatch.has_value());
  for (std::size_t position = 0; position < reference.size(); ++position) {
    for (const double wrong : {kInfinity, kNaN, -kInfinity, 2.0}) {
      std::vector<double> values = reference;
      values[position] = wrong;
      const bool same = std::isfinite(wrong) ? position == 0
                        : std::isnan(wrong)  ? position == 2
                                             : wrong == reference[position];
      EXPECT_EQ(compare(values, reference, DType::float32).mismatch.has_value(), !same) << position << ' ' << wrong;
    }
  }
}

TEST(Compare, ValuesThatRoundToInfinityCountAsInfinity) {
  EXPECT_FALSE(
      compare(std::vector<double>{kInfinity}, std::vector<double>{70000}, DType::float16).mismatch.has_value());
  EXPECT_TRUE(
      compare(std::vector<double>{kInfinity}, std::vector<double>{70000}, DType::bfloat16).mismatch.has_value());
}

TEST(Compare, UnitRoundoff) {
  for (const DType dtype : {DType::float64, DType::float32, DType::float16, DType::bfloat16}) {
    // The largest relative error is that of the midpoint between 1 and the next number.
    HostTensor tensor(dtype, std::vector<std::int64_t>{1});
    tensor.fill([&] { return 1 + 2 * unit_roundoff(dtype); });
    EXPECT_EQ(tensor.values()[0], 1 + 2 * unit_roundoff(dtype)) << dtype_name(dtype);
    tensor.fill([&] { return 1 + unit_roundoff(dtype); });
    EXPECT_EQ(tensor.values()[0], 1) << dtype_name(dtype);
  }
}

CheckOptions single_thread(const char* impl) {
  CheckOptions options;
  options.plan.impl = impl;
  options.plan.threads = 1;
  return options;
}

const OutputCheck& output(const CheckResult& result, const std::string& name) {
  for (const OutputCheck& check : result.outputs) {
    if (check.output == name) {
      return check;
    }
  }
  throw std::out_of_range(name);
}

TEST(CheckProblem, ChecksEveryOutputAgainstItsBound) {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 30;
  problem.seq_k = 41;
  problem.dim_qk = problem.dim_v = 16;
  problem.sinks = true;
  problem.bias_shape = {1, 1, 30, 41};
  const CheckResult result = check_problem(problem, single_thread("reference"));
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.forward.impl, "reference");
  std::vector<std::string> names;
  for (const OutputCheck& check : result.outputs) {
    names.push_back(check.output);
    EXPECT_GT(check.error, 0) << check.output << ": rounding to float32 leaves an error";
    EXPECT_LT(check.error, 1e-7) << check.output;
    EXPECT_DOUBLE_EQ(check.allowed, check.output == "dsinks" ? 1e-5 : 2e-6) << check.output;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"O", "LSE", "dQ", "dK", "dV", "dbias", "dsinks"}));
}

TEST(CheckProblem, LargeScoresTakeTheirOwnRounding) {
  Problem problem;
  problem.seq_q = problem.seq_k = 20;
  problem.dim_qk = problem.dim_v = 16;
  problem.scale = 20.0F;
  const CheckResult result = check_problem(problem, single_thread("reference"));
  EXPECT_GT(output(result, "O").allowed, 2e-6);
  EXPECT_LT(output(result, "O").allowed, 2e-5) << "scores of less than 20 * 16";
  problem.scale = 1e6F;
  EXPECT_EQ(output(check_problem(problem, single_thread("reference")), "O").allowed, 1e-4);
}

TEST(CheckProblem, BoundsOfStorageInSixteenBitsFollowTheStandardImpl) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = problem.seq_k = 64;
  problem.dim_qk = problem.dim_v = 32;
  const CheckResult result = check_problem(problem, single_thread("reference"));
  EXPECT_TRUE(result.ok());
  const double rounding = unit_roundoff(DType::bfloat16);
  EXPECT_GT(output(result, "O").allowed, rounding);
  EXPECT_LT(output(result, "O").allowed, 4 * rounding);
  EXPECT_GT(output(result, "O").error, rounding / 10) << "the oracle's own rounding to bfloat16";
}

// One key: dS cancels to nothing, so that rounding errors are infinitely large relative to ||dQ||.
TEST(CheckProblem, CancelledGradientsAreMeasuredByTheirTypicalSize) {
  Problem problem;
  problem.seq_q = 20;
  problem.seq_k = 1;
  problem.dim_qk = problem.dim_v = 33;
  CheckOptions options;
  options.plan.threads = 1;
  const CheckResult result = check_problem(problem, options);
  EXPECT_TRUE(result.ok()) << output(result, "dQ").error;
}

TEST(CheckProblem, LeavesTheBackwardPassOut) {
  Problem problem;
  problem.seq_q = problem.seq_k = 8;
  problem.dim_qk = problem.dim_v = 8;
  CheckOptions options = single_thread("reference");
  options.backward = false;
  const CheckResult result = check_problem(problem, options);
  EXPECT_EQ(result.outputs.size(), 2U);
  EXPECT_FALSE(result.backward.has_value());
}

TEST(CheckProblem, PassesOnWhatAPlanRefuses) {
  Problem problem;
  problem.seq_q = problem.seq_k = 8;
  problem.dim_qk = problem.dim_v = 8;
  test::expect_invalid({"impl", "abacus"}, [&] { check_problem(problem, single_thread("abacus")); });
  problem.dim_v = 0;
  test::expect_invalid({"dim_v"}, [&] { check_problem(problem, single_thread("reference")); });
}

TEST(PlanWorkspace, HasTheBytesThatThePlanAsksFor) {
  Problem problem;
  problem.seq_q = problem.seq_k = 100;
  problem.dim_qk = problem.dim_v = 64;
  const Plan plan = Plan::make(problem, Pass::backward);
  const PlanWorkspace workspace(plan);
  EXPECT_GE(workspace.bytes().size(), static_cast<std::size_t>(plan.workspace_bytes()));
  EXPECT_LE(workspace.bytes().size(), static_cast<std::size_t>(plan.workspace_bytes()) + 1);
}

}  // namespace
}  // namespace tessera::cli
