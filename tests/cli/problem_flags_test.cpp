#include "cli/problem_flags.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cli/flag_values.h"
#include "cli/parse_flags.h"
#include "cli/random_problem.h"
#include "support/expect_error.h"

namespace tessera::cli {
namespace {

using test::expect_invalid;

std::string refusal(const std::string& line) {
  try {
    parse_flags(line);
  } catch (const BadFlag& error) {
    return error.what();
  }
  return "";
}

TEST(ProblemFlags, Defaults) {
  Problem expected;
  expected.seq_q = expected.seq_k = 1024;
  expected.heads_q = expected.heads_kv = 8;
  expected.dim_qk = expected.dim_v = 64;
  EXPECT_EQ(parse_flags("").problem, expected);
}

TEST(ProblemFlags, Functions) {
  std::string folder = (std::filesystem::temp_directory_path() / "tessera-flags-XXXXXX").string();
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string score = folder + "/score.h", mask = folder + "/mask.h", table = folder + "/table.txt";
  std::ofstream(score) << "the score";
  std::ofstream(mask) << "the mask";
  std::ofstream(table) << "1 2.5\n-3,4\n";
  const Problem problem =
      parse_flags("--score-function " + score + ":0.5,-2 --mask-function " + mask + " --function-start 1,2,3,4")
          .problem;
  EXPECT_EQ(problem.score_function, ScoreFunction("the score", {0.5F, -2}, score));
  EXPECT_EQ(problem.mask_function, MaskFunction("the mask", {}, mask));
  EXPECT_EQ(problem.function_positions, (Positions{1, 2, 3, 4, 1, 1}));
  EXPECT_EQ(parse_flags(to_flags(problem, {})).problem, problem);
  const auto from_file = parse_flags("--score-function " + score + ":@" + table).problem.score_function;
  EXPECT_EQ(from_file->params(), (std::vector<float>{1, 2.5F, -3, 4}));
  expect_invalid({"--score-function", "'x'", "numbers"}, [&] { parse_flags("--score-function " + score + ":1,x"); });
  expect_invalid({"--score-function", "'1e39'", "float32"},
                 [&] { parse_flags("--score-function " + score + ":1e39"); });
  test::expect_error(ErrorCode::io, {"absent.h"}, [&] { parse_flags("--mask-function " + folder + "/absent.h"); });
  EXPECT_NE(refusal("--function-start 1,2,3").find("--function-start"), std::string::npos);
  EXPECT_NE(refusal("--score-function :3").find("--score-function"), std::string::npos);
  std::filesystem::remove_all(folder);
}

TEST(ProblemFlags, Sizes) {
  const Problem problem = parse_flags(
                              "--dtype bfloat16 --output-dtype float32 --batch 2 --seq 5 --seq-k 7 --heads 6 "
                              "--kv-heads 3 --dim 8 --dim-v 9")
                              .problem;
  EXPECT_EQ(problem.dtype, DType::bfloat16);
  EXPECT_EQ(problem.output_dtype, DType::float32);
  EXPECT_EQ(problem.batch, 2);
  EXPECT_EQ(problem.seq_q, 5);
  EXPECT_EQ(problem.seq_k, 7);
  EXPECT_EQ(problem.heads_q, 6);
  EXPECT_EQ(problem.heads_kv, 3);
  EXPECT_EQ(problem.dim_qk, 8);
  EXPECT_EQ(problem.dim_v, 9);
}

TEST(ProblemFlags, RaggedLengths) {
  const Problem problem = parse_flags("--lengths 5,0,17 --lengths-k 2,3,4 --key-lengths 1,0,4").problem;
  EXPECT_EQ(problem.cu_seqlens_q, (std::vector<std::int64_t>{0, 5, 5, 22}));
  EXPECT_EQ(problem.cu_seqlens_k, (std::vector<std::int64_t>{0, 2, 5, 9}));
  EXPECT_EQ(problem.seq_q, 17);
  EXPECT_EQ(problem.key_lengths, (std::vector<std::int64_t>{1, 0, 4}));
  EXPECT_EQ(parse_flags("--lengths 3,4").problem.cu_seqlens_k, (std::vector<std::int64_t>{0, 3, 7}));
  EXPECT_EQ(parse_flags("--lengths none").problem.batch, 0);
}

TEST(ProblemFlags, Masks) {
  EXPECT_EQ(parse_flags("--mask causal").problem.mask, Mask::causal());
  EXPECT_EQ(parse_flags("--mask causal-top-left").problem.mask, Mask::causal(Alignment::top_left()));
  const BlockGrid grid{256, 256, 64, 32};
  EXPECT_EQ(parse_flags("--seq 256 --block-size 64,32 --mask causal,butterfly").problem.mask,
            Mask::causal() & Mask::blocks(block_patterns::butterfly(grid)));
  EXPECT_EQ(
      parse_flags("--seq 256 --block-size 64,32 --mask random:0.25:7,local:2 --window 100,0").problem.mask,
      Mask::window(100, 0) & Mask::blocks(block_patterns::random(grid, 0.25, 7) & block_patterns::local(grid, 2)));
  EXPECT_EQ(parse_flags("--seq 32 --block-size 16 --heads 2 --blocks x./.x,xx/..").problem.mask.block_mask().draw(1),
            "##\n..\n");
  EXPECT_EQ(parse_flags("--window 7,inf").problem.mask, Mask::window(7, Mask::kUnlimited));
  EXPECT_EQ(parse_flags("--mask causal --window 7,3").problem.mask, Mask::window(7, 0));
  EXPECT_EQ(parse_flags("--mask causal --alignment -3").problem.mask, Mask::causal(Alignment::at(-3)));
  EXPECT_EQ(parse_flags("--alignment top-left --alibi").problem.mask, Mask().with_alignment(Alignment::top_left()));
  const Problem packed = parse_flags("--batch 2 --seq 3 --segments 2,1/0,3 --segments-k 1,2").problem;
  EXPECT_EQ(packed.mask.segment_ids(), (Segments{{0, 0, 1, 1, 1, 1}, {0, 1, 1, 0, 1, 1}}));
}

TEST(ProblemFlags, ScoresAndDropout) {
  const Problem problem = parse_flags(
                              "--dtype float16 --seq 4 --heads 2 --scale -0.5 --softcap 30 --alibi --sinks --bias hk "
                              "--bias-dtype float16 --dropout 0.25 --dropout-seed 18446744073709551615 "
                              "--dropout-start 1,2,3,4")
                              .problem;
  EXPECT_EQ(problem.scale, -0.5F);
  EXPECT_EQ(problem.softcap, 30.0F);
  EXPECT_TRUE(problem.alibi);
  EXPECT_TRUE(problem.sinks);
  EXPECT_EQ(problem.bias_shape, (std::array<std::int64_t, 4>{1, 2, 1, 4}));
  EXPECT_EQ(problem.bias_dtype, DType::float16);
  EXPECT_EQ(problem.dropout, (Dropout{0.25, 18446744073709551615ULL, 3, 4, 2, 1}));
}

TEST(ProblemFlags, BadValuesNameFlagValueAndAccepted) {
  EXPECT_EQ(refusal("--dtype float8"), "--dtype: 'float8'; accepted: float32, bfloat16, float16");
  EXPECT_EQ(refusal("--heads 0"), "--heads: '0'; accepted: an integer, 1 or more");
  EXPECT_EQ(refusal("--dim 513"), "--dim: '513'; accepted: an integer, 1 to 512");
  EXPECT_EQ(refusal("--seq 12x"), "--seq: '12x'; accepted: an integer, 0 or more");
  EXPECT_EQ(refusal("--seq 99999999999999999999"), "--seq: '99999999999999999999'; accepted: an integer, 0 or more");
  EXPECT_EQ(refusal("--scale inf"), "--scale: 'inf'; accepted: a finite number of float32");
  EXPECT_NE(refusal("--window 3"), "");
  EXPECT_NE(refusal("--window -1,0"), "");
  EXPECT_NE(refusal("--window 1,2,3"), "");
  EXPECT_NE(refusal("--lengths 3,,4"), "");
  EXPECT_NE(refusal("--segments 3,-1"), "");
  EXPECT_NE(refusal("--bias kq"), "");
  EXPECT_NE(refusal("--bias bhqk1"), "");
  EXPECT_NE(refusal("--dropout-start 1,2,3"), "");
  EXPECT_NE(refusal("--dropout-seed -1"), "");
  EXPECT_NE(refusal("--alignment middle"), "");
  EXPECT_NE(refusal("--strides woven"), "");
}

TEST(ProblemFlags, StridesAreNamedAsTheyAreRead) {
  for (const char* word : {"packed", "heads-first", "padded", "padded16", "mixed", "mixed16"}) {
    EXPECT_EQ(strides_text(parse_flags("--strides " + std::string(word)).tensors), word);
  }
}

TEST(ProblemFlags, ProblemsThatCannotBeNameTheFlag) {
  expect_invalid({"--kv-heads: 4", "divisors of heads_q, 6"}, [] { parse_flags("--heads 6 --kv-heads 4"); });
  expect_invalid({"--dropout: 1.5", "0 to 1"}, [] { parse_flags("--dropout 1.5"); });
  expect_invalid({"--softcap: -1"}, [] { parse_flags("--softcap -1"); });
  expect_invalid({"--output-dtype: float16"}, [] { parse_flags("--output-dtype float16"); });
  expect_invalid({"--key-lengths[0]: 9", "0 to 8"}, [] { parse_flags("--seq 8 --key-lengths 9"); });
}

TEST(ProblemFlags, FlagsThatContradictEachOther) {
  expect_invalid({"--lengths", "--seq"}, [] { parse_flags("--lengths 3 --seq 3"); });
  expect_invalid({"--lengths-k", "--lengths"}, [] { parse_flags("--lengths-k 3"); });
  expect_invalid({"--segments-k", "--segments"}, [] { parse_flags("--segments-k 1024"); });
  expect_invalid({"--segments", "7 tokens", "8"}, [] { parse_flags("--seq 8 --segments 3,4"); });
  expect_invalid({"--segments", "2 lists", "3"}, [] { parse_flags("--batch 3 --seq 1 --segments 1/1"); });
  expect_invalid({"--bias-dtype", "--bias"}, [] { parse_flags("--bias-dtype float32"); });
  expect_invalid({"--alignment", "top-left"}, [] { parse_flags("--mask causal-top-left --alignment 3"); });
}

TEST(ProblemFlags, EveryRandomProblemGoesThroughFlagsAndBack) {
  constexpr std::uint64_t kAll = TESSERA_RANDOM_PROBLEMS;
  for (std::uint64_t index = 0; index < kAll + kAll / 10; ++index) {
    const RandomProblem random = random_problem(11, index, index < kAll ? ProblemSpace::all : ProblemSpace::sm90);
    const std::string line = to_flags(random.problem, random.tensors);
    const ParsedFlags parsed = parse_flags(line);
    ASSERT_EQ(parsed.problem, random.problem) << "problem " << index << ": " << line;
    ASSERT_EQ(parsed.tensors, random.tensors) << "problem " << index << ": " << line;
  }
}

}  // namespace
}  // namespace tessera::cli
