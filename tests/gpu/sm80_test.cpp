// The sm80 Impl by name: the whole conformance table and random problems over the whole feature space, on any GPU since Ampere.
#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "cli/random_problem.h"
#include "conformance/cases.h"
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

using test::Case;

class Sm80 : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto reason = test::gpu_missing("sm80")) GTEST_SKIP() << *reason;
  }
};

bool is_float64(const Problem& problem) { return problem.dtype == DType::float64; }

// The weight 0 of a hidden pair, by the mask or by a bias of -inf, is multiplied with whatever the value is, and 0 times NaN is
// NaN (docs/numerics.md).
bool beyond_the_contract(const Problem& problem, const cli::TensorOptions& tensors) {
  const Mask& mask = problem.mask;
  return tensors.specials && (mask.has_band() || mask.has_segments() || mask.has_blocks() || problem.bias_shape);
}

// dO of float32 beside inputs of 16 bits is rounded to theirs, which shows where the standard algorithm is exact: where rows
// see one key.
bool rounds_dout(const Problem& problem) {
  return problem.dtype != DType::float32 && problem.out_dtype() == DType::float32;
}

// The table, and its float32 rows in both dtypes of 16 bits too.
std::vector<Case> rows() {
  std::vector<Case> all;
  for (const Case& row : test::conformance_cases()) {
    if (is_float64(row.problem) || beyond_the_contract(row.problem, row.tensors)) continue;
    all.push_back(row);
    if (row.problem.dtype != DType::float32) continue;
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      Case narrow = row;
      narrow.name += "_as_" + std::string(dtype_name(dtype));
      narrow.problem.dtype = dtype;
      all.push_back(narrow);
    }
  }
  return all;
}

bool lacks_sm80_kernel(const Problem& problem) {
  PlanOptions options = test::gpu_targets("sm80").front().options();
  return test::kernel_missing(test::refusal(problem, Pass::forward, options));
}

class Sm80Conformance : public Sm80, public testing::WithParamInterface<Case> {};

TEST_P(Sm80Conformance, MeetsTheContract) {
  const auto& [name, problem, tensors] = GetParam();
  if (lacks_sm80_kernel(problem)) GTEST_SKIP() << "this build has no kernel for it";
  test::expect_conforms(problem, tensors, test::gpu_targets("sm80"));
}

INSTANTIATE_TEST_SUITE_P(Table, Sm80Conformance, testing::ValuesIn(rows()),
                         [](const auto& info) { return info.param.name; });

// Needs no GPU.
TEST(Sm80Table, HasEnoughRows) {
  std::set<std::string> names;
  for (const Case& row : rows()) EXPECT_TRUE(names.insert(row.name).second) << row.name;
  EXPECT_GE(names.size(), test::conformance_cases().size());
}

constexpr std::uint64_t kSeed = 80;
constexpr std::uint64_t kShards = 20;
constexpr std::uint64_t kProblemsPerShard = 50;

class Sm80RandomProblems : public Sm80, public testing::WithParamInterface<std::uint64_t> {};

TEST_P(Sm80RandomProblems, Conform) {
  std::uint64_t missing = 0;
  for (std::uint64_t n = 0; n < kProblemsPerShard; ++n) {
    const std::uint64_t index = GetParam() * kProblemsPerShard + n;
    SCOPED_TRACE("tessera verify --device cuda --impl sm80 --space all --random 1 --seed " + std::to_string(kSeed) +
                 " --first " + std::to_string(index));
    const cli::RandomProblem random = cli::random_problem(kSeed, index);
    if (is_float64(random.problem) || beyond_the_contract(random.problem, random.tensors) ||
        rounds_dout(random.problem)) {
      continue;
    }
    if (lacks_sm80_kernel(random.problem)) {
      ++missing;
      continue;
    }
    test::expect_conforms(random.problem, random.tensors, test::gpu_targets("sm80"));
  }
  RecordProperty("problems_without_a_kernel", static_cast<int>(missing));
  EXPECT_LT(missing, kProblemsPerShard) << "this build has a kernel for none of them";
}

INSTANTIATE_TEST_SUITE_P(Shards, Sm80RandomProblems, testing::Range(std::uint64_t{0}, kShards));

// float32 with products of factors rounded to TF32, by kernels of their own where the build has them.
TEST_F(Sm80, RoundedProductsMeetTheirContract) {
  std::vector<test::Target> targets = test::gpu_targets("sm80");
  targets.front().float32_products = Float32Products::tf32;
  std::set<std::string> kernels;
  for (const std::int64_t dim : {40, 64, 100, 128, 200}) {
    for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(50, 10)}) {
      Problem problem = test::gpu_problem(300, 333, 4, dim, mask);
      problem.dtype = DType::float32;
      problem.heads_kv = 2;
      for (const bool with_softcap : {false, true}) {
        problem.softcap = with_softcap ? 5.0F : 0.0F;
        if (lacks_sm80_kernel(problem)) continue;
        test::expect_conforms(problem, {}, targets);
        test::expect_conforms(problem, {}, targets, false);
        const Plan plan = Plan::make(problem, Pass::backward, targets.front().options());
        for (const KernelFacts& kernel : plan.facts().kernels) {
          kernels.insert(kernel.name);
        }
      }
    }
  }
  EXPECT_TRUE(std::any_of(kernels.begin(), kernels.end(), [](const auto& name) { return name.ends_with("tf32"); }));
}

// float32 beyond the range of the float16 that its products are made of.
TEST_F(Sm80, Float32OfAnyMagnitude) {
  for (const double magnitude : {1e-15, 1e-6, 1e6, 1e15}) {
    for (const std::int64_t dim : {40, 64, 128, 200}) {
      for (const Mask& mask : {Mask::none(), Mask::causal()}) {
        Problem problem = test::gpu_problem(150, 170, 2, dim, mask);
        problem.dtype = DType::float32;
        problem.scale = static_cast<float>(1.0 / (std::sqrt(static_cast<double>(dim)) * magnitude * magnitude));
        cli::TensorOptions tensors;
        tensors.magnitude = magnitude;
        SCOPED_TRACE(magnitude);
        if (!lacks_sm80_kernel(problem)) test::expect_conforms(problem, tensors, test::gpu_targets("sm80"));
      }
    }
  }
}

// Lengths around the edges of tiles, for every width of rows that the kernels have.
TEST_F(Sm80, AroundTheEdgesOfTiles) {
  constexpr std::int64_t kLengths[][2] = {{0, 5},   {5, 0},     {1, 1},   {1, 129},  {31, 33},
                                          {64, 64}, {127, 128}, {129, 1}, {257, 96}, {130, 193}};
  for (const std::int64_t dim : {8, 64, 96, 100, 128, 192, 256, 500}) {
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      for (const auto& [queries, keys] : kLengths) {
        for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(20, 5, Alignment::at(-3))}) {
          Problem problem = test::gpu_problem(queries, keys, 2, dim, mask);
          problem.dtype = dtype;
          problem.heads_kv = 1;
          if (!lacks_sm80_kernel(problem)) test::expect_conforms(problem, {}, test::gpu_targets("sm80"));
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera
