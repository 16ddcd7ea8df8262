// Score programs in the Hopper kernels, most of which are compiled when they are first used.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "cli/compare.h"
#include "cuda/nvrtc.h"
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::gpu_problem;

class GpuPrograms : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    ::unsetenv("TESSERA_JIT");
    if (const auto reason = internal::nvrtc().unavailable()) GTEST_SKIP() << *reason;
  }
};

// The modifiers that the Hopper kernels take in both passes.
Problem with_all(Problem problem) {
  problem.softcap = 6;
  problem.alibi = true;
  problem.sinks = true;
  problem.dropout.probability = 0.3;
  problem.dropout.seed = 0x0123456789ABCDEF;
  return problem;
}

Problem ragged(Problem problem) {
  set_ragged(problem, {0, 100, 100, 433, 434, 700}, {0, 130, 140, 473, 474, 600});
  return problem;
}

TEST_F(GpuPrograms, EachModifierMeetsTheContract) {
  for (const std::int64_t dim : {64, 128}) {
    for (const Mask& mask : {Mask::none(), Mask::causal()}) {
      const Problem plain = gpu_problem(301, 517, 2, dim, mask);
      Problem softcap = plain;
      softcap.softcap = 3;
      Problem alibi = plain;
      alibi.alibi = true;
      Problem dropout = plain;
      dropout.dropout.probability = 0.25;
      Problem sinks = plain;
      sinks.sinks = true;
      for (const Problem& problem : {softcap, alibi, dropout, sinks}) {
        SCOPED_TRACE(problem.describe());
        test::expect_conforms(problem, {}, test::gpu_targets());
      }
    }
  }
}

TEST_F(GpuPrograms, AllModifiersTogetherMeetTheContract) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    Problem problem = with_all(gpu_problem(400, 400, 4, 64, Mask::causal()));
    problem.dtype = dtype;
    problem.batch = 2;
    problem.heads_kv = 2;
    for (const Problem& one : {problem, ragged(problem)}) {
      SCOPED_TRACE(one.describe());
      test::expect_conforms(one, {}, test::gpu_targets());
    }
  }
}

// Enough keys for the tiles of three warpgroups at head dim 64.
TEST_F(GpuPrograms, LongSequencesMeetTheContract) {
  for (const std::int64_t dim : {64, 128}) {
    Problem dropout = gpu_problem(1100, 2100, 1, dim);
    dropout.dropout.probability = 0.25;
    Problem softcap = gpu_problem(1100, 2100, 1, dim);
    softcap.softcap = 3;
    for (const Problem& problem : {dropout, softcap, with_all(gpu_problem(2100, 2100, 1, dim, Mask::causal()))}) {
      SCOPED_TRACE(problem.describe());
      test::expect_conforms(problem, {}, test::gpu_targets());
    }
  }
}

// Up to a softcap of 50 bfloat16 weights need no maximum; below 0.6 of it tanh is a polynomial.
TEST_F(GpuPrograms, SoftcapsOnBothSidesOfTheBoundMeetTheContract) {
  for (const std::int64_t dim : {64, 128}) {
    for (const float softcap : {0.05F, 2.0F, 50.0F, 51.0F}) {
      Problem problem = gpu_problem(301, 517, 2, dim, Mask::causal());
      problem.softcap = softcap;
      problem.sinks = true;
      for (const Problem& one : {problem, ragged(problem)}) {
        SCOPED_TRACE(one.describe());
        const std::string kernel = test::gpu_plan(one, Pass::forward).facts().kernels.front().name;
        EXPECT_EQ(kernel.find("_bounded") != std::string::npos, softcap <= 50) << kernel;
        test::expect_conforms(one, {}, test::gpu_targets());
      }
    }
  }
}

// Positions of dropout are those of the whole, of which the problem is a part.
TEST_F(GpuPrograms, DropsTheSameElementsOfAPart) {
  Problem problem = gpu_problem(200, 300, 2, 64, Mask::window(90, 40));
  problem.dropout = {0.5, 99, 1000, 640, 3, 7, 2, 1};
  test::expect_conforms(problem, {}, test::gpu_targets());
  problem = gpu_problem(200, 300, 2, 64);
  problem.dropout.probability = 1;
  test::expect_conforms(problem, {}, test::gpu_targets());
}

// Documents of 90 tokens under a causal mask, and every third block of 128 x 128 left out.
Mask listed_mask(std::int64_t tokens) {
  Segments segments;
  for (std::int64_t token = 0; token < tokens; ++token) {
    segments.query.push_back(static_cast<std::int32_t>(token / 90));
  }
  segments.key = segments.query;
  const BlockMask blocks = BlockMask::from_function({tokens, tokens, 128, 128},
                                                    [](auto row, auto column) { return (row + column) % 3 != 1; });
  return Mask::causal() & Mask::segments(segments) & Mask::blocks(blocks);
}

TEST_F(GpuPrograms, ListedMasksMeetTheContract) {
  Problem dropout = gpu_problem(500, 500, 4, 64, listed_mask(500));
  dropout.heads_kv = 2;
  dropout.dropout.probability = 0.25;
  Problem alibi = gpu_problem(500, 500, 2, 96, listed_mask(500));
  alibi.alibi = true;
  alibi.sinks = true;
  for (const Problem& problem : {dropout, alibi, with_all(gpu_problem(500, 500, 2, 128, listed_mask(500)))}) {
    SCOPED_TRACE(problem.describe());
    test::expect_conforms(problem, {}, test::gpu_targets());
    test::expect_conforms(problem, {}, test::gpu_targets(), false);
  }
}

TEST_F(GpuPrograms, GradientsInAnyOrderMeetTheContract) {
  const Problem problem = with_all(gpu_problem(900, 900, 4, 128, Mask::causal()));
  test::expect_conforms(problem, {}, test::gpu_targets(), false);
}

TEST_F(GpuPrograms, RefusalsNameTheField) {
  const auto refusal_of = [](const Problem& problem, Pass pass) { return test::gpu_refusal(problem, pass); };
  Problem bias = gpu_problem(64, 64, 1, 64);
  bias.bias_shape = {1, 1, 64, 64};
  EXPECT_NE(refusal_of(bias, Pass::backward).find("sm90: bias_shape: "), std::string::npos);
  Problem keys = gpu_problem(64, 64, 1, 64);
  keys.dropout.probability = 0.5;
  keys.dropout.key_start = 32;
  EXPECT_NE(refusal_of(keys, Pass::forward).find("sm90: dropout: "), std::string::npos);
  Problem wide = gpu_problem(64, 64, 1, 256);
  wide.dropout.probability = 0.5;
  EXPECT_NE(refusal_of(wide, Pass::backward).find("sm90: dropout: "), std::string::npos);
  Problem program = with_all(gpu_problem(64, 64, 1, 64));
  ::setenv("TESSERA_JIT", "off", 1);
  const std::string off = refusal_of(program, Pass::forward);
  ::unsetenv("TESSERA_JIT");
  EXPECT_NE(off.find("TESSERA_JIT is off"), std::string::npos) << off;
}

TEST_F(GpuPrograms, CompiledKernelsAreCached) {
  std::string name = (fs::temp_directory_path() / "tessera-jit-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  ::setenv("TESSERA_CACHE_DIR", name.c_str(), 1);
  Problem problem = gpu_problem(64, 64, 1, 64, Mask::window(20, 20));
  problem.dtype = DType::float16;
  problem.alibi = true;
  problem.softcap = 7;
  const Plan plan = test::gpu_plan(problem, Pass::forward);
  ::unsetenv("TESSERA_CACHE_DIR");
  ASSERT_FALSE(plan.facts().kernels.empty());
  EXPECT_TRUE(plan.facts().kernels.front().compiled);
  EXPECT_NE(plan.facts().kernels.front().name.find("_window_float16_softcap_alibi"), std::string::npos);
  EXPECT_EQ(std::distance(fs::directory_iterator(name), fs::directory_iterator{}), 1);
  fs::remove_all(name);
}

TEST_F(GpuPrograms, BiasMeetsTheContractForward) {
  for (const std::array<std::int64_t, 4>& shape :
       {std::array<std::int64_t, 4>{2, 3, 150, 200}, {1, 3, 150, 200}, {2, 1, 1, 200}, {1, 3, 150, 1}}) {
    Problem problem = gpu_problem(150, 200, 3, 64, Mask::causal());
    problem.batch = 2;
    problem.bias_shape = shape;
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      problem.bias_dtype = dtype;
      SCOPED_TRACE(problem.describe());
      cli::CheckOptions options;
      options.plan = test::gpu_options();
      options.backward = false;
      for (const cli::OutputCheck& check : cli::check_problem(problem, options).outputs) {
        EXPECT_TRUE(check.ok()) << check.output << ": error " << check.error << ", allowed " << check.allowed
                                << check.mismatch;
      }
    }
  }
}

}  // namespace
}  // namespace tessera
