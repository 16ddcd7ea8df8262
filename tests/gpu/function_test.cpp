// Score functions and mask functions that users write, in GPU kernels that are compiled when they are first used.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "cuda/function_form.h"
#include "cuda/function_source.h"
#include "cuda/nvrtc.h"
#include "gpu/gpu_runs.h"
#include "gpu/gpu_test.h"
#include "tessera/score_function.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::gpu_problem;

TESSERA_SCORE_FUNCTION(distance_bias, return s - params[i.head] * static_cast<float>(abs(i.query - i.key));)
TESSERA_SCORE_FUNCTION(stepped_bias, return s - params[i.head] * abs(i.distance());)
TESSERA_SCORE_FUNCTION(slope_bias, return s + params[i.head] * i.distance();)
TESSERA_SCORE_FUNCTION(hand_softcap, return params[0] * tanh(s / params[0]);)
TESSERA_SCORE_FUNCTION(t5_bias, const int distance = min(max(i.query - i.key, 0), 31);
                       return s + params[32 * i.head + distance];)
TESSERA_SCORE_FUNCTION(key_table, return s * params[i.key] + params[i.query];)
TESSERA_SCORE_FUNCTION(gate, return s * sigmoid(0.25F * s + 0.1F * static_cast<float>(i.batch));)
TESSERA_SCORE_FUNCTION(
    series, T sum = s; for (int n = 1; n < 20; ++n) {
      sum += params[n % 4] * sin(s + static_cast<float>(n * (i.query % 3))) / static_cast<float>(n + 2);
    } return sum;)
TESSERA_SCORE_FUNCTION(expressions, const T cap(params[0]); T x = s / cap; x += 1; x *= 0.5F; x -= params[1]; x /= 2.0F;
                       const T bent = s > 0.0F ? max(s, 0.1F) : min(s, x);
                       const T kept = select(i.key % 3 == 0, s* s, -x);
                       return 2.0F / (1.0F + exp(-abs(bent))) + kept * sigmoid(s) - floor(params[1] * 3.0F) * tanh(x);)
TESSERA_SCORE_FUNCTION(root, return sqrt(1.0F + s * s) - log(1.5F + tanh(s)) + 0.01F * i.distance();)
TESSERA_MASK_FUNCTION(documents,
                      return i.key <= i.query && static_cast<int>(params[i.key]) == static_cast<int>(params[i.query]);)

// Needs no GPU.
TEST(FunctionSource, LongFunctionsAreCalled) {
  const auto is_called = [](const std::string& body) {
    Problem problem;
    problem.score_function =
        ScoreFunction("template <class T> T score(T s, tessera::Index i, const float* params) {" + body + "}");
    return internal::function_source(problem).find("TESSERA_FUNCTION_IS_LONG 1") != std::string::npos;
  };
  EXPECT_FALSE(is_called("return s; // for\n"));
  EXPECT_FALSE(is_called("/* while */ return s * tanh(s);"));
  EXPECT_FALSE(is_called("const float single = 1, formal = 2; return s * single + formal;"));
  EXPECT_TRUE(is_called("for (int n = 0; n < 3; ++n) s = s * s; return s;"));
  EXPECT_TRUE(is_called("return sin(s);"));
  EXPECT_TRUE(is_called("/* a */ return pow (s, 2.0f); /*"));
  EXPECT_TRUE(is_called("return s" + std::string(400, '+') + "s;"));
}

// Code that has a version for dual numbers has none for what else stands in for float.
TEST(FunctionSource, FunctionsThatNameDualNumbersTakeFloats) {
  const auto is_generic = [](const std::string& body) {
    Problem problem;
    problem.score_function = ScoreFunction(
        "template <class T> T half(T x) { return x / 2; }\n"
        "template <class T> T score(T s, tessera::Index i, const float* params) {" +
        body + "}");
    return internal::function_source(problem).find("TESSERA_FUNCTION_IS_GENERIC 1") != std::string::npos;
  };
  EXPECT_TRUE(is_generic("return half(s);"));
  EXPECT_TRUE(is_generic("return half(s); // not Dual"));
  EXPECT_FALSE(is_generic("if constexpr (sizeof(T) == sizeof(tessera::Dual<float>)) return s; else return half(s);"));
}

TEST(FunctionSource, FunctionsThatAddAreKnownByTheirForm) {
  const auto adds = [](const std::string& body) {
    return internal::form_of("template <class T> T score(T s, tessera::Index i, const float* params) {" + body + "}")
        .adds;
  };
  EXPECT_TRUE(adds("return s - params[i.head] * abs(i.distance());"));
  EXPECT_TRUE(adds("return s + params[min(max(i.query - i.key, 0), 31)];"));
  EXPECT_TRUE(adds("const float d = log(1.0F + abs(i.distance())); return s + (i.key < 3 ? d : -infinity);"));
  EXPECT_FALSE(adds("return s;"));
  EXPECT_FALSE(adds("return s * params[0];"));
  EXPECT_FALSE(adds("return s + params[0] * s;"));
  EXPECT_FALSE(adds("return s + params[0] > 0 ? 1 : 0;"));
  EXPECT_FALSE(adds("return s + params[0], params[1];"));
  EXPECT_FALSE(adds("return s + params[0] or i.key < 3;"));
  EXPECT_FALSE(adds("return s++ + 1;"));
  EXPECT_FALSE(adds("T t = s; return t + 1;"));
  EXPECT_FALSE(adds("if (i.key > i.query) return -infinity; return s + 1;"));
  EXPECT_FALSE(adds("\n#define f s\nreturn s + f;"));
  EXPECT_FALSE(adds("return s + 1"));
  EXPECT_TRUE(internal::form_of("return s + i . key;").names_positions);
  EXPECT_FALSE(internal::form_of("return s + i.distance() * keys;").names_positions);
}

TEST(FunctionSource, NamesDependOnTheTextAlone) {
  Problem problem;
  EXPECT_EQ(internal::function_suffix(problem), "");
  problem.score_function = distance_bias({1.0F});
  const std::string one = internal::function_suffix(problem);
  problem.score_function = distance_bias({2.0F});
  EXPECT_EQ(internal::function_suffix(problem), one);
  problem.score_function = hand_softcap({1.0F});
  EXPECT_NE(internal::function_suffix(problem), one);
}

class GpuFunctions : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    ::unsetenv("TESSERA_JIT");
    if (const auto reason = internal::nvrtc().unavailable()) GTEST_SKIP() << *reason;
  }

  static void check(const Problem& problem, const std::string& impl = "sm90", bool deterministic = true) {
    SCOPED_TRACE(problem.describe());
    test::expect_conforms(problem, {}, test::gpu_targets(impl), deterministic);
  }
};

Problem with(Problem problem, const ScoreFunction& function) {
  problem.score_function = function;
  return problem;
}

// A table whose entries differ, so that a position that is off by one shows.
std::vector<float> table(std::size_t count, float step) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = 0.5F + step * static_cast<float>(i * 7 % 19);
  return values;
}

Problem ragged(Problem problem) {
  set_ragged(problem, {0, 100, 100, 433, 434, 700}, {0, 130, 140, 473, 474, 600});
  return problem;
}

TEST_F(GpuFunctions, EveryPositionIsTheRightOne) {
  for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(90, 40)}) {
    Problem problem = gpu_problem(301, 517, 3, 64, mask);
    problem.batch = 2;
    check(with(problem, key_table(table(517, 0.06F))));
  }
  Problem problem = gpu_problem(301, 517, 3, 128, Mask::causal());
  problem.batch = 2;
  check(with(problem, distance_bias({0.03F, 0.1F, 0.3F})));
  check(with(problem, stepped_bias({0.03F, 0.1F, 0.3F})));
}

TEST_F(GpuFunctions, DerivativesAreThoseOfTheFunction) {
  Problem problem = gpu_problem(400, 400, 4, 64, Mask::causal());
  problem.batch = 2;
  problem.heads_kv = 2;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    problem.dtype = dtype;
    check(with(problem, hand_softcap({3.0F})));
    check(with(problem, gate()));
  }
  check(with(ragged(problem), t5_bias(table(128, 0.1F))));
}

// Along any order of key tiles some of these grow by more than a maximum may lag behind.
TEST_F(GpuFunctions, ScoresThatGrowFromTileToTile) {
  for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(500, 300)}) {
    const Problem problem = gpu_problem(600, 900, 4, 64, mask);
    check(with(problem, slope_bias({0.03F, -0.03F, 1.5F, -1.5F})));
    check(with(problem, stepped_bias({0.03F, -0.03F, 1.5F, -1.5F})));
  }
  Problem lengths = gpu_problem(300, 700, 4, 128);
  lengths.batch = 3;
  lengths.key_lengths = {700, 130, 515};
  check(with(lengths, stepped_bias({0.03F, -0.03F, 1.5F, -1.5F})));
}

// Quotients, comparisons and functions of a score that is a product yet to be scaled.
TEST_F(GpuFunctions, ExpressionsOfEveryKind) {
  check(with(gpu_problem(260, 390, 2, 64, Mask::causal()), expressions({2.0F, 0.5F})));
}

TEST_F(GpuFunctions, CombineWithModifiers) {
  Problem problem = with(gpu_problem(260, 390, 2, 128, Mask::causal()), t5_bias(table(64, 0.1F)));
  problem.softcap = 6;
  problem.alibi = true;
  problem.sinks = true;
  problem.dropout.probability = 0.3;
  check(problem);
  check(problem, "sm90", false);
}

TEST_F(GpuFunctions, CombineWithListedMasks) {
  const std::int64_t tokens = 700;
  std::vector<float> ids;
  ids.reserve(tokens);
  for (std::int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<float>(i < 130 ? 0 : i < 500 ? 1 : 2));
  for (const std::int64_t dim : {64, 128}) {
    Problem problem = gpu_problem(tokens, tokens, 4, dim);
    problem.heads_kv = 2;
    problem.mask_function = documents(ids);
    check(problem);
    problem.score_function = distance_bias({0.03F, 0.1F, 0.3F, 0.01F});
    check(problem);
    problem.softcap = 4;
    problem.alibi = true;
    problem.dropout.probability = 0.2;
    check(problem);
  }
}

// Such a one is called, not inlined.
TEST_F(GpuFunctions, LongFunctions) {
  for (const std::int64_t dim : {64, 128}) {
    const Problem problem = with(gpu_problem(260, 390, 2, dim, Mask::causal()), series({0.1F, 0.2F, 0.3F, 0.4F}));
    check(problem);
    check(problem, "sm80");
  }
}

TEST_F(GpuFunctions, PositionsAreThoseOfTheWhole) {
  Problem problem = with(gpu_problem(200, 300, 2, 64, Mask::window(90, 40)), distance_bias({0.0F, 0.0F, 0.02F, 0.1F}));
  problem.function_positions = {1, 2, 50, 7, 2, 1};
  check(problem);
  check(problem, "sm80");
}

class GpuFunctionsOfSm80 : public GpuFunctions, public testing::WithParamInterface<DType> {};

TEST_P(GpuFunctionsOfSm80, EveryHeadDimAndKernel) {
  for (const std::int64_t dim : {40, 128, 320}) {
    Problem problem = gpu_problem(90, 120, 2, dim, Mask::causal());
    problem.dtype = GetParam();
    check(with(problem, stepped_bias({0.03F, 0.1F})), "sm80");
  }
  Problem problem = with(gpu_problem(150, 200, 2, 64), root());
  problem.dtype = GetParam();
  problem.bias_shape = {1, 2, 150, 200};
  problem.softcap = 5;
  check(problem, "sm80");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GpuFunctionsOfSm80, testing::Values(DType::bfloat16, DType::float32),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST_F(GpuFunctions, WideHeads) {
  for (const std::int64_t dim : {192, 256}) {
    Problem problem = with(gpu_problem(150, 200, 2, dim, Mask::causal()), distance_bias({0.03F, 0.1F}));
    PlanOptions options;
    options.device = test::kGpu;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      EXPECT_EQ(Plan::make(problem, pass, options).facts().impl, "sm90");
    }
    check(problem);
    check(problem, "sm80");
  }
}

TEST_F(GpuFunctions, ErrorsHaveTheUsersLines) {
  const Problem problem =
      with(gpu_problem(64, 64, 1, 64),
           ScoreFunction(
               "template <class T> T score(T s, tessera::Index i, const float* params) {\n  return s + no_such;\n}\n",
               {}, "my_bias"));
  for (const std::string impl : {"sm90", "sm80"}) {
    PlanOptions options = test::gpu_options();
    options.impl = impl;
    try {
      Plan::make(problem, Pass::forward, options);
      ADD_FAILURE() << impl << " compiled it";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
      const std::string text = error.what();
      EXPECT_EQ(text.find("score_function: "), 0U) << text;
      EXPECT_NE(text.find("my_bias(2): error: "), std::string::npos) << text;
      EXPECT_NE(text.find("no_such"), std::string::npos) << text;
    }
  }
}

TEST_F(GpuFunctions, WithoutACompilerTheyAreRefused) {
  const Problem problem = with(gpu_problem(64, 64, 1, 64), distance_bias({1.0F}));
  ::setenv("TESSERA_JIT", "off", 1);
  PlanOptions options;
  options.device = test::kGpu;
  const std::string refusal = test::refusal(problem, Pass::forward, options);
  ::unsetenv("TESSERA_JIT");
  EXPECT_NE(refusal.find("sm90: score_function: "), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("sm80: score_function: "), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("TESSERA_JIT is off"), std::string::npos) << refusal;
}

std::ptrdiff_t entries_of(const std::string& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator{});
}

// An entry for each text: not for each set of parameters, of which each plan has its own.
TEST_F(GpuFunctions, TheCacheKnowsThemByTheirText) {
  std::string name = (fs::temp_directory_path() / "tessera-jit-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  ::setenv("TESSERA_CACHE_DIR", name.c_str(), 1);
  const auto plan = [](const std::string& body, const std::vector<float>& params) {
    const ScoreFunction function(
        "template <class T> T score(T s, tessera::Index i, const float* params) { return " + body + "; }", params, "f");
    return test::gpu_plan(with(gpu_problem(64, 64, 1, 64), function), Pass::forward).facts().kernels.front().name;
  };
  const std::string first = plan("s + 0.125f * params[0]", {1.0F});
  EXPECT_EQ(entries_of(name), 1);
  EXPECT_EQ(plan("s + 0.125f * params[0]", {2.0F}), first);
  EXPECT_EQ(entries_of(name), 1);
  EXPECT_NE(plan("s + 0.25f * params[0]", {1.0F}), first);
  EXPECT_EQ(entries_of(name), 2);
  ::unsetenv("TESSERA_CACHE_DIR");
  fs::remove_all(name);
}

// Plans that are made at the same time compile at the same time, and each has its own parameters.
TEST_F(GpuFunctions, PlansOfSeveralThreads) {
  const Problem problem = gpu_problem(128, 128, 2, 64);
  std::vector<test::Outputs> outputs(4);
  std::vector<std::thread> threads;
  threads.reserve(outputs.size());
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    threads.emplace_back([&, n] {
      const float slope = n < 2 ? 0.5F : 0.125F;
      outputs[n] = test::GpuRuns(with(problem, distance_bias({slope, slope}))).run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(test::bitwise_equal(outputs[0], outputs[1]));
  EXPECT_TRUE(test::bitwise_equal(outputs[2], outputs[3]));
  EXPECT_FALSE(test::bitwise_equal(outputs[0], outputs[2]));
}

}  // namespace
}  // namespace tessera
