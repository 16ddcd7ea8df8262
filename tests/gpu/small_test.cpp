// A few tiny problems that reach every kernel, for tools that make kernels a thousand times slower: compute-sanitizer
// --gtest_filter='Small*'.
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

using cli::TensorOptions;
using test::gpu_problem;

class Small : public test::GpuTest {
 protected:
  static void check(const Problem& problem, const TensorOptions& tensors = {}, bool deterministic = true) {
    if (test::lacks_kernel(problem)) GTEST_SKIP() << "this build has no kernel for it";
    test::expect_conforms(problem, tensors, test::gpu_targets(), deterministic);
  }
};

class SmallDims : public Small, public testing::WithParamInterface<std::int64_t> {};

TEST_P(SmallDims, Dense) { check(gpu_problem(150, 201, 1, GetParam())); }
TEST_P(SmallDims, Causal) { check(gpu_problem(201, 150, 2, GetParam(), Mask::causal())); }
TEST_P(SmallDims, Window) { check(gpu_problem(170, 300, 1, GetParam(), Mask::window(40, 7))); }
TEST_P(SmallDims, AnyOrder) { check(gpu_problem(140, 270, 1, GetParam(), Mask::causal()), {}, false); }

class SmallListed : public Small, public testing::WithParamInterface<std::int64_t> {};

TEST_P(SmallListed, BlocksUnderACausalMask) {
  const BlockGrid grid{290, 300, 128, 128};
  const Mask mask = Mask::causal() & Mask::blocks(block_patterns::random(grid, 0.6, 2));
  check(gpu_problem(290, 300, 1, GetParam(), mask));
}
TEST_P(SmallListed, AnyOrder) {
  const BlockGrid grid{290, 300, 64, 64};
  check(gpu_problem(290, 300, 1, GetParam(), Mask::blocks(block_patterns::random(grid, 0.4, 2))), {}, false);
}

INSTANTIATE_TEST_SUITE_P(Small, SmallListed, testing::Values(64, 96, 128), testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(Small, SmallDims, testing::Values(64, 96, 128, 192, 256), testing::PrintToStringParamName());

TEST_F(Small, Float16) {
  Problem problem = gpu_problem(150, 201, 1, 64, Mask::causal());
  problem.dtype = DType::float16;
  check(problem);
}

TEST_F(Small, DimsThatAreNotThoseOfAKernel) {
  Problem problem = gpu_problem(70, 90, 1, 40);
  problem.dim_v = 104;
  check(problem);
}

TEST_F(Small, GroupedHeadsAndGradientOfLse) {
  Problem problem = gpu_problem(70, 140, 4, 64, Mask::causal());
  problem.heads_kv = 2;
  TensorOptions tensors;
  tensors.dlse = true;
  check(problem, tensors);
}

TEST_F(Small, Ragged) {
  Problem problem = gpu_problem(0, 0, 2, 64, Mask::causal());
  set_ragged(problem, {0, 70, 70, 201}, {0, 131, 140, 270});
  TensorOptions tensors;
  tensors.strides.reset();
  tensors.aligned16 = true;
  check(problem, tensors);
}

TEST_F(Small, KeyLengthsAndRowsThatSeeNothing) {
  Problem problem = gpu_problem(150, 140, 2, 64, Mask::causal());
  problem.batch = 3;
  problem.key_lengths = {140, 0, 33};
  check(problem);
}

TEST_F(Small, NoKeys) { check(gpu_problem(70, 0, 2, 64)); }
TEST_F(Small, NoQueries) { check(gpu_problem(0, 70, 2, 64)); }
TEST_F(Small, OneToken) { check(gpu_problem(1, 1, 1, 64)); }

}  // namespace
}  // namespace tessera
