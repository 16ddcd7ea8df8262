// Functions that users write: what they are, their compilation at run time, and functions that stand for built-in features.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "cli/problem_tensors.h"
#include "function/native.h"
#include "function/source.h"
#include "support/expect_error.h"
#include "support/functions.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using cli::ProblemTensors;
using test::expect_error;
using test::expect_invalid;

constexpr const char* kCappedSource = R"(
template <class T>
T score(T s, tessera::Index, const float* params) {
  const T cap(params[0]);
  return cap * tanh(s / cap);
}
)";

Problem small_problem(DType dtype = DType::float32) {
  Problem problem;
  problem.dtype = dtype;
  problem.batch = 2;
  problem.heads_q = 2;
  problem.heads_kv = 2;
  problem.seq_q = problem.seq_k = 90;
  problem.dim_qk = problem.dim_v = 16;
  return problem;
}

struct Results {
  test::Values out, lse, dq, dk, dv;
  bool operator==(const Results&) const = default;
};

// Both passes on one Impl, with the tensors of the seed; `bias` is that of problems with one.
Results run(const Problem& problem, const std::string& impl, const std::optional<test::Values>& bias = std::nullopt) {
  PlanOptions options;
  options.impl = impl;
  options.threads = 1;
  ProblemTensors tensors(problem, {});
  if (bias) test::assign(tensors.bias, *bias);
  Plan::make(problem, Pass::forward, options).run(tensors.forward());
  Plan::make(problem, Pass::backward, options).run(tensors.backward());
  return {tensors.out.values(), tensors.lse.values(), tensors.dq.values(), tensors.dk.values(), tensors.dv.values()};
}

double distance(const test::Values& a, const test::Values& b) {
  double difference = 0, size = 0;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t n = 0; n < a.size(); ++n) {
    difference += (a[n] - b[n]) * (a[n] - b[n]);
    size += b[n] * b[n];
  }
  return std::sqrt(difference / size);
}

void expect_close(const Results& a, const Results& b, double most) {
  EXPECT_LE(distance(a.out, b.out), most);
  EXPECT_LE(distance(a.lse, b.lse), most);
  EXPECT_LE(distance(a.dq, b.dq), most);
  EXPECT_LE(distance(a.dk, b.dk), most);
  EXPECT_LE(distance(a.dv, b.dv), most);
}

// An environment variable for the time of a test.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value.c_str(), 1);
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

TEST(UserFunction, IsComparableAndPrintable) {
  const ScoreFunction a("source", {1, 2}, "name");
  EXPECT_EQ(a, ScoreFunction("source", {1, 2}, "name"));
  EXPECT_NE(a, ScoreFunction("source", {1, 3}, "name"));
  EXPECT_NE(a, ScoreFunction("other", {1, 2}, "name"));
  EXPECT_NE(a, ScoreFunction("source", {1, 2}, "other"));
  EXPECT_NE(a, ScoreFunction("source", {1}, "name"));
  EXPECT_EQ(a.describe(), "name(2 params, " + a.hash().substr(0, 8) + ")");
  EXPECT_EQ(test::capped({2.0F}), test::capped({2.0F}));
  EXPECT_NE(test::capped({2.0F}), test::capped({3.0F}));

  Problem problem = small_problem();
  problem.score_function = a;
  EXPECT_NE(problem.describe().find("score_function name(2 params, "), std::string::npos) << problem.describe();
  Problem same = problem;
  EXPECT_EQ(same, problem);
  same.function_positions.key_start = 3;
  EXPECT_NE(same, problem);
}

TEST(UserFunction, KnowsWhatItDependsOn) {
  const auto mask = [](const char* source) { return MaskFunction(source); };
  const MaskFunction plain = mask("bool keep(tessera::Index i) { return i.key < 3; }");
  EXPECT_FALSE(plain.depends_on_batch() || plain.depends_on_head());
  EXPECT_TRUE(mask("bool keep(tessera::Index at) { return at.head < 3; }").depends_on_head());
  EXPECT_FALSE(mask("bool keep(tessera::Index at) { return at.head < 3; }").depends_on_batch());
  EXPECT_TRUE(mask("bool keep(tessera::Index at) { return at . batch; }").depends_on_batch());
  EXPECT_FALSE(
      mask("bool keep(tessera::Index i) { int ahead = 1, batches = 2; return ahead + batches; }").depends_on_head());
  EXPECT_TRUE(test::striped_heads().depends_on_head());
  EXPECT_FALSE(test::striped_heads().depends_on_batch());
  EXPECT_TRUE(test::same_document({1}).depends_on_batch());
}

bool of_the_program(Index i) { return i.head == 1 || i.key < 5; }
TESSERA_MASK_FUNCTION(calls_the_program, return of_the_program(i);)

TEST(UserFunction, ThatHandsOnItsIndexMayDependOnAnything) {
  EXPECT_TRUE(calls_the_program().depends_on_head());
  Problem problem = small_problem();
  problem.mask_function = calls_the_program();
  const BlockMask blocks = lower_mask_function(problem).mask.block_mask();
  EXPECT_FALSE(blocks.attends(blocks.pattern_of(0, 0), 0, 20));
  EXPECT_TRUE(blocks.attends(blocks.pattern_of(0, 1), 0, 20));
}

TEST(UserFunction, RefusesWhatNoCompilerShouldSee) {
  expect_invalid({"name of a function", "'a\"b'"}, [] { ScoreFunction("x", {}, "a\"b"); });
  expect_invalid({"name of a function", "''"}, [] { ScoreFunction("x", {}, ""); });
  expect_invalid({"source of 'f'", "no text"}, [] { MaskFunction(" \n", {}, "f"); });
  expect_invalid({"source of 'f'", "#include"}, [] { MaskFunction("\n # include <cmath>\n", {}, "f"); });
  expect_invalid({"params[1] of 'f'", "nan"}, [] { MaskFunction("x", {1, std::nanf("")}, "f"); });
}

TEST(UserFunction, PositionsAreValidated) {
  Problem problem = small_problem();
  problem.score_function = test::capped({2.0F});
  problem.function_positions.key_start = 2147483647 - 88;
  expect_invalid({"function_positions.key_start", "2147483559", "2147483558"}, [&] { validate(problem); });
  problem.function_positions = {};
  problem.function_positions.query_stride = 0;
  expect_invalid({"function_positions.query_stride", "0", "1 to"}, [&] { validate(problem); });
  problem.score_function.reset();
  validate(problem);
}

// The lowered mask, pair by pair.
TEST(MaskFunction, LowersToExactlyItsPairs) {
  Problem problem = small_problem();
  problem.seq_q = 300;
  problem.seq_k = 517;
  problem.mask_function = test::dilated({3, 200});
  problem.function_positions = {0, 0, 40, 7, 2, 1};
  for (const int threads : {1, 3}) {
    const Problem lowered = lower_mask_function(problem, threads);
    EXPECT_FALSE(lowered.mask_function);
    const BlockMask& blocks = lowered.mask.block_mask();
    EXPECT_EQ(blocks.patterns(), 1);
    for (int q = 0; q < 300; ++q) {
      for (int k = 0; k < 517; ++k) {
        const int apart = 40 + 2 * q - (7 + k);
        ASSERT_EQ(blocks.attends(0, q, k), apart >= 0 && apart < 200 && apart % 3 == 0) << q << " " << k;
      }
    }
  }
}

TEST(MaskFunction, HiddenBlocksDoNotExist) {
  Problem problem = small_problem();
  problem.seq_q = problem.seq_k = 1024;
  problem.mask_function = test::dilated({1, 128});
  const BlockMask window = lower_mask_function(problem).mask.block_mask();
  EXPECT_EQ(window.kept_blocks(), 8 + 7);
  EXPECT_EQ(window.row(0, 4).size(), 2U);
  problem.mask = Mask::causal();
  EXPECT_EQ(lower_mask_function(problem).mask.block_mask(), window);
  problem.mask_function =
      MaskFunction(internal::NativeMask{[](const internal::FunctionRow& row, const float*, unsigned char* keeps) {
                     for (long long n = 0; n < row.count; ++n) keeps[n] = 1;
                   }},
                   "{ return true; }", {}, "all");
  const Problem causal = lower_mask_function(problem);
  EXPECT_EQ(causal.mask.block_mask().kept_blocks(), 8 * 9 / 2);  // blocks behind the band are not evaluated
  EXPECT_EQ(causal.schedule(0, 128, 128).count().pairs, 1024 * 1025 / 2);
}

TEST(MaskFunction, ASchedulesProblemHasToBeLowered) {
  Problem problem = small_problem();
  problem.mask_function = test::dilated({3, 200});
  expect_invalid({"mask_function", "dilated(2 params, ", "lower_mask_function()"},
                 [&] { problem.schedule(0, 16, 16); });
}

TEST(ScoreFunction, SoftCapByHandIsTheBuiltIn) {
  for (const DType dtype : {DType::float64, DType::float32}) {
    Problem built_in = small_problem(dtype);
    built_in.softcap = 1.5F;
    Problem by_hand = small_problem(dtype);
    by_hand.score_function = test::capped({1.5F});
    const bool exact = dtype == DType::float64;
    expect_close(run(by_hand, exact ? "reference" : "flash"), run(built_in, exact ? "reference" : "flash"),
                 exact ? 1e-14 : 1e-6);
  }
}

TEST(ScoreFunction, RelativeBiasIsAnAdditiveBias) {
  Problem by_function = small_problem();
  by_function.score_function = test::relative_bias(test::relative_bias_params(2));
  Problem by_tensor = small_problem();
  by_tensor.bias_shape = {{1, 2, 90, 90}};
  test::Values bias;
  for (int head = 0; head < 2; ++head) {
    for (int q = 0; q < 90; ++q) {
      for (int k = 0; k < 90; ++k) {
        const int place = std::max(-8, std::min(k - q, 8)) + 8;
        bias.push_back(by_function.score_function->params()[static_cast<std::size_t>(head * 17 + place)]);
      }
    }
  }
  EXPECT_EQ(run(by_function, "flash"), run(by_tensor, "flash", bias));
}

TEST(MaskFunction, DocumentsAreSegments) {
  std::vector<float> params{90};
  Segments segments;
  for (int batch = 0; batch < 2; ++batch) {
    for (int token = 0; token < 90; ++token) {
      const int document = token / (batch == 0 ? 37 : 11);
      params.push_back(static_cast<float>(document));
      segments.query.push_back(document);
    }
  }
  segments.key = segments.query;
  Problem by_function = small_problem();
  by_function.mask_function = test::same_document(params);
  by_function.mask = Mask::causal();
  Problem by_segments = small_problem();
  by_segments.mask = Mask::causal() & Mask::segments(segments);
  EXPECT_EQ(run(by_function, "reference"), run(by_segments, "reference"));
  expect_close(run(by_function, "flash"), run(by_segments, "flash"), 1e-6);  // tiles differ
}

// What a compiler of the host makes, in a cache of its own.
class HostCompiled : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "tessera-functions-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    cache_.emplace("TESSERA_CACHE_DIR", name);
    if (const auto reason = internal::native_unavailable(ScoreFunction("x"))) GTEST_SKIP() << *reason;
  }
  void TearDown() override {
    cache_.reset();
    fs::remove_all(folder_);
  }
  std::vector<fs::path> files() const { return {fs::directory_iterator(folder_), fs::directory_iterator{}}; }

  fs::path folder_;
  std::optional<Variable> cache_;
};

TEST_F(HostCompiled, SourceTextIsWhatTheProgramCompiles) {
  Problem by_source = small_problem();
  by_source.score_function = ScoreFunction(kCappedSource, {1.5F}, "capped");
  Problem by_macro = small_problem();
  by_macro.score_function = test::capped({1.5F});
  for (const char* impl : {"flash", "reference"}) {
    expect_close(run(by_source, impl), run(by_macro, impl), 1e-6);
  }
  ASSERT_EQ(files().size(), 1U);
  EXPECT_EQ(files().front().extension(), ".so");
  by_source.score_function = ScoreFunction(kCappedSource, {0.75F}, "capped");  // other parameters, the same code
  by_macro.score_function = test::capped({0.75F});
  expect_close(run(by_source, "flash"), run(by_macro, "flash"), 1e-6);
  EXPECT_EQ(files().size(), 1U);
}

// The text that a macro keeps is for GPUs; here it shows that it is whole.
TEST_F(HostCompiled, TheTextOfAMacroCompiles) {
  const ScoreFunction macro = test::gated_distance({0.5F});
  Problem problem = small_problem();
  problem.score_function = macro;
  const Results expected = run(problem, "reference");
  problem.score_function = ScoreFunction(macro.source(), macro.params(), macro.name());
  expect_close(run(problem, "reference"), expected, 1e-7);  // logarithms of float
}

TEST_F(HostCompiled, MasksWithAndWithoutParameters) {
  Problem problem = small_problem();
  problem.mask_function = MaskFunction("bool keep(tessera::Index i) { return i.key <= i.query; }", {}, "below");
  EXPECT_EQ(lower_mask_function(problem).schedule(0, 90, 90).count().pairs, 90 * 91 / 2);
  problem.mask_function =
      MaskFunction("bool keep(tessera::Index i, const float* params) { return i.key < params[0]; }", {7}, "first");
  EXPECT_EQ(lower_mask_function(problem).schedule(0, 90, 90).count().pairs, 90 * 7);
}

TEST_F(HostCompiled, ErrorsHaveTheLinesOfTheUser) {
  Problem problem = small_problem();
  problem.score_function = ScoreFunction(
      "template <class T>\n"
      "T score(T s, tessera::Index i, const float* params) {\n"
      "  return s * undefined_name;\n"
      "}\n",
      {}, "my_function");
  expect_invalid({"score_function: 'my_function' does not compile", "my_function:3:", "undefined_name"},
                 [&] { Plan::make(problem, Pass::forward); });
  EXPECT_TRUE(files().empty());
  problem.score_function.reset();
  problem.mask_function = MaskFunction("bool keep(tessera::Index i) {\n  return i.position < 3;\n}\n", {}, "my_mask");
  expect_invalid({"mask_function: 'my_mask' does not compile", "my_mask:2:", "position"},
                 [&] { Plan::make(problem, Pass::forward); });
}

TEST_F(HostCompiled, WithoutACompilerTheReasonIsNamed) {
  Problem problem = small_problem();
  problem.score_function = ScoreFunction(kCappedSource, {1.5F}, "never_compiled");
  {
    const Variable compiler("CXX", "no-such-compiler -O1");
    expect_error(ErrorCode::unsupported, {"flash: score_function: ", "in CXX, no-such-compiler -O1, was not found"},
                 [&] { Plan::make(problem, Pass::forward); });
  }
  {
    const Variable misspelt("TESSERA_JIT", "OFF");
    expect_invalid({"TESSERA_JIT: OFF; accepted: on, off"}, [&] { Plan::make(problem, Pass::forward); });
  }
  const Variable off("TESSERA_JIT", "off");
  expect_error(ErrorCode::unsupported, {"flash: score_function: TESSERA_JIT is off"},
               [&] { Plan::make(problem, Pass::forward); });
  problem.score_function = test::capped({1.5F});  // needs no compiler
  Plan::make(problem, Pass::forward);
  problem.mask_function = MaskFunction("bool keep(tessera::Index) { return true; }", {}, "never_compiled");
  expect_error(ErrorCode::unsupported, {"mask_function: 'never_compiled' is not compiled: TESSERA_JIT is off"},
               [&] { Plan::make(problem, Pass::forward); });
}

// Several processes at once leave one entry; damaged ones and those of other functions are compiled again.
TEST_F(HostCompiled, ProcessesShareTheCache) {
  const char* const source = "bool keep(tessera::Index i) { return i.key % 3 == 0; }";
  Problem problem = small_problem();
  problem.mask_function = MaskFunction(source, {}, "shared");
  const auto works = [&] { return lower_mask_function(problem).schedule(0, 90, 90).count().pairs == 90 * 30; };
  const auto in_processes = [&](int count) {
    std::vector<pid_t> children;
    for (int n = 0; n < count; ++n) {
      children.push_back(::fork());
      if (children.back() == 0) ::_exit(works() ? 0 : 1);
    }
    for (const pid_t child : children) {
      int status = -1;
      ::waitpid(child, &status, 0);
      EXPECT_EQ(status, 0);
    }
  };
  in_processes(2);
  ASSERT_EQ(files().size(), 1U);
  const fs::path entry = files().front();
  const auto whole = fs::file_size(entry);

  fs::resize_file(entry, whole - 100);
  in_processes(1);
  EXPECT_EQ(fs::file_size(entry), whole);

  std::fstream(entry, std::ios::binary | std::ios::in | std::ios::out).seekp(1000).put('\x7f');
  in_processes(1);

  problem.mask_function = MaskFunction("bool keep(tessera::Index i) { return i.key == 0; }", {}, "another");
  ASSERT_EQ(lower_mask_function(problem).schedule(0, 90, 90).count().pairs, 90);
  ASSERT_EQ(files().size(), 2U);
  const fs::path other = files().front() == entry ? files().back() : files().front();
  fs::copy_file(other, entry, fs::copy_options::overwrite_existing);
  problem.mask_function = MaskFunction(source, {}, "shared");
  EXPECT_TRUE(works());
}

}  // namespace
}  // namespace tessera
