// The flags of devices, and what there is to say without one.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/compare.h"
#include "cli/device_tensors.h"
#include "cli/flag_values.h"
#include "cli/measure.h"
#include "cli/parse_flags.h"
#include "cli/problem_flags.h"
#include "cli/run_plan.h"
#include "cuda/device.h"
#include "support/expect_error.h"

namespace tessera::cli {
namespace {

constexpr Device kCuda{DeviceKind::cuda, 0};

struct Parsed {
  PlanOptions plan;
  Problem problem;
};

Parsed parse(const std::string& line) {
  Parsed parsed;
  parsed.problem = parse_flags(line, &parsed.plan).problem;
  return parsed;
}

TEST(DeviceFlag, ReadsDevices) {
  EXPECT_EQ(to_device("cpu"), Device{});
  EXPECT_EQ(to_device("cuda"), kCuda);
  EXPECT_EQ(to_device("cuda:0"), kCuda);
  EXPECT_EQ(to_device("cuda:12"), (Device{DeviceKind::cuda, 12}));
  for (const char* text :
       {"", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:1K", "cuda:1 ", "cuda0", "CUDA", "cuda:99999999999"}) {
    EXPECT_FALSE(to_device(text)) << text;
  }
}

TEST(DeviceFlag, TextIsReadBack) {
  for (const Device& device : {Device{}, kCuda, Device{DeviceKind::cuda, 7}}) {
    EXPECT_EQ(to_device(device_text(device)), device);
  }
}

TEST(DeviceFlag, SetsThePlanAndTheDefaultDtype) {
  EXPECT_EQ(parse("").plan.device, Device{});
  EXPECT_EQ(parse("").problem.dtype, DType::float32);
  EXPECT_TRUE(parse("").plan.deterministic);
  const Parsed cuda = parse("--device cuda:1 --nondeterministic");
  EXPECT_EQ(cuda.plan.device, (Device{DeviceKind::cuda, 1}));
  EXPECT_FALSE(cuda.plan.deterministic);
  EXPECT_EQ(cuda.problem.dtype, DType::bfloat16);
  EXPECT_EQ(parse("--device cuda --dtype float16").problem.dtype, DType::float16);
  EXPECT_EQ(parse("--device cpu").problem.dtype, DType::float32);
  EXPECT_EQ(parse("--device cuda --device cpu").problem.dtype, DType::float32);
}

TEST(DeviceFlag, RefusesOthersWithThoseThatAreAccepted) {
  try {
    parse("--device rocm");
    FAIL() << "no error";
  } catch (const BadFlag& error) {
    EXPECT_STREQ(error.what(), "--device: 'rocm'; accepted: cpu, cuda, cuda:0, cuda:1, ..");
  }
}

class WithoutAGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!internal::cuda_unavailable()) GTEST_SKIP() << "there is a GPU";
    problem_.dtype = DType::bfloat16;
    problem_.seq_q = problem_.seq_k = 16;
    problem_.dim_qk = problem_.dim_v = 64;
  }
  template <class Action>
  void expect_unsupported(Action action) {
    test::expect_error(ErrorCode::unsupported, {*internal::cuda_unavailable()}, action);
  }

  Problem problem_;
};

TEST_F(WithoutAGpu, EverythingSaysWhy) {
  expect_unsupported([] { internal::cuda_device(0); });
  expect_unsupported([&] { DeviceTensors(ProblemTensors(problem_, {}), 0); });
  const Plan plan = Plan::make(problem_, Pass::forward);
  expect_unsupported([&] { run_plan(plan, kCuda, ProblemTensors(problem_, {})); });
  CheckOptions check;
  check.plan.device = kCuda;
  expect_unsupported([&] { check_problem(problem_, check); });
}

TEST_F(WithoutAGpu, BenchmarksSkipTheImplWithItsReason) {
  MeasureOptions options;
  options.plan.device = kCuda;
  options.impls = {"sm90"};
  const MeasuredPoint point = measure(problem_, Pass::backward, options);
  ASSERT_EQ(point.measurements.size(), 1U);
  EXPECT_FALSE(point.measurements.front().measured());
  EXPECT_NE(point.measurements.front().skipped.find(*internal::cuda_unavailable()), std::string::npos);
}

}  // namespace
}  // namespace tessera::cli
