// Every refusal of a Problem names the argument, its value and what is accepted.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "support/expect_error.h"
#include "tessera/plan.h"
#include "tessera/problem.h"

namespace tessera {
namespace {

Problem good_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 5;
  problem.seq_k = 7;
  problem.heads_q = 6;
  problem.heads_kv = 3;
  problem.dim_qk = 16;
  problem.dim_v = 8;
  return problem;
}

Problem good_ragged() {
  Problem problem = good_problem();
  set_ragged(problem, {0, 2, 5}, {0, 4, 6});
  return problem;
}

struct Refusal {
  std::string name;
  Problem problem;
  std::string argument;
  std::string value;
  std::string accepted;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.problem.describe(); }

Refusal refusal(std::string name, Problem problem, const std::function<void(Problem&)>& change, std::string argument,
                std::string value, std::string accepted) {
  change(problem);
  return {std::move(name), std::move(problem), std::move(argument), std::move(value), std::move(accepted)};
}

std::vector<Refusal> extents() {
  const Problem good = good_problem();
  return {
      refusal(
          "batch", good, [](Problem& p) { p.batch = -1; }, "batch", "-1", "0 or more"),
      refusal(
          "seq_q", good, [](Problem& p) { p.seq_q = -2; }, "seq_q", "-2", "0 or more"),
      refusal(
          "seq_k", good, [](Problem& p) { p.seq_k = -3; }, "seq_k", "-3", "0 or more"),
      refusal(
          "heads_q", good, [](Problem& p) { p.heads_q = 0; }, "heads_q", "0", "1 or more"),
      refusal(
          "heads_kv", good, [](Problem& p) { p.heads_kv = 0; }, "heads_kv", "0", "1 or more"),
      refusal(
          "group", good, [](Problem& p) { p.heads_kv = 4; }, "heads_kv", "4", "divisors of heads_q, 6"),
      refusal(
          "dim_qk_low", good, [](Problem& p) { p.dim_qk = 0; }, "dim_qk", "0", "1 to 512"),
      refusal(
          "dim_qk_high", good, [](Problem& p) { p.dim_qk = 513; }, "dim_qk", "513", "1 to 512"),
      refusal(
          "dim_v_low", good, [](Problem& p) { p.dim_v = -1; }, "dim_v", "-1", "1 to 512"),
      refusal(
          "dim_v_high", good, [](Problem& p) { p.dim_v = 1024; }, "dim_v", "1024", "1 to 512"),
      refusal(
          "overflow_q", good, [](Problem& p) { p.seq_q = std::int64_t{1} << 60; }, "seq_q", "2305843009213693952",
          "below 2^63"),
      refusal(
          "overflow_k", good, [](Problem& p) { p.batch = std::int64_t{1} << 61; }, "batch", "2305843009213693952",
          "below 2^63"),
  };
}

std::vector<Refusal> dtypes() {
  const Problem good = good_problem();
  return {
      refusal(
          "output_dtype", good, [](Problem& p) { p.output_dtype = DType::float16; }, "output_dtype", "float16",
          "float32"),
      refusal(
          "output_dtype_64", good, [](Problem& p) { p.dtype = DType::float64, p.output_dtype = DType::float32; },
          "output_dtype", "float32", "float64"),
      refusal(
          "bias_dtype", good,
          [](Problem& p) {
            p.dtype = DType::bfloat16;
            p.bias_shape = {{1, 1, 5, 7}};
            p.bias_dtype = DType::float16;
          },
          "bias_dtype", "float16", "bfloat16"),
  };
}

std::vector<Refusal> layouts() {
  const Problem good = good_problem();
  const Problem ragged = good_ragged();
  return {
      refusal(
          "cu_k_missing", ragged, [](Problem& p) { p.cu_seqlens_k.clear(); }, "cu_seqlens_k", "no numbers", "both"),
      refusal(
          "cu_q_missing", ragged, [](Problem& p) { p.cu_seqlens_q.clear(); }, "cu_seqlens_q", "no numbers", "both"),
      refusal(
          "cu_q_count", ragged, [](Problem& p) { p.cu_seqlens_q = {0, 5}; }, "cu_seqlens_q", "2 numbers", "3"),
      refusal(
          "cu_k_count", ragged, [](Problem& p) { p.cu_seqlens_k = {0, 1, 2, 6}; }, "cu_seqlens_k", "4 numbers", "3"),
      refusal(
          "cu_q_start", ragged, [](Problem& p) { p.cu_seqlens_q = {1, 2, 5}; }, "cu_seqlens_q[0]", "1", "0"),
      refusal(
          "cu_k_descends", ragged, [](Problem& p) { p.cu_seqlens_k = {0, 4, 3}; }, "cu_seqlens_k[2]", "3",
          "at least its predecessor, 4"),
      refusal(
          "seq_q_not_longest", ragged, [](Problem& p) { p.seq_q = 9; }, "seq_q", "9", "3"),
      refusal(
          "seq_k_not_longest", ragged, [](Problem& p) { p.seq_k = 2; }, "seq_k", "2", "4"),
      refusal(
          "key_lengths_count", good, [](Problem& p) { p.key_lengths = {1}; }, "key_lengths", "1 numbers", "2"),
      refusal(
          "key_lengths_high", good, [](Problem& p) { p.key_lengths = {7, 8}; }, "key_lengths[1]", "8", "0 to 7"),
      refusal(
          "key_lengths_negative", good, [](Problem& p) { p.key_lengths = {-1, 2}; }, "key_lengths[0]", "-1", "0 to 7"),
      refusal(
          "key_lengths_ragged", ragged, [](Problem& p) { p.key_lengths = {4, 3}; }, "key_lengths[1]", "3", "0 to 2"),
  };
}

std::vector<Refusal> masks() {
  const Problem good = good_problem();
  const std::vector<std::int32_t> queries(10, 0);
  const std::vector<std::int32_t> keys(14, 0);
  std::vector<std::int32_t> falling = keys;
  falling[8] = 4;
  falling[9] = 2;
  return {
      refusal(
          "diagonal", good, [](Problem& p) { p.mask = Mask::causal(Alignment::at((std::int64_t{1} << 60) + 1)); },
          "mask diagonal", "1152921504606846977", "-2^60 to 2^60"),
      refusal(
          "window_left", good, [](Problem& p) { p.mask = Mask::window(Mask::kUnlimited - 1, 0); }, "window left",
          "9223372036854775806", "0 to 2^60, or unlimited"),
      refusal(
          "window_right", good, [](Problem& p) { p.mask = Mask::window(0, Mask::kUnlimited - 1); }, "window right",
          "9223372036854775806", "0 to 2^60, or unlimited"),
      refusal(
          "segments_query", good, [&](Problem& p) { p.mask = Mask::segments({{0}, keys}); }, "segments.query",
          "1 numbers", "10"),
      refusal(
          "segments_key", good, [&](Problem& p) { p.mask = Mask::segments({queries, {}}); }, "segments.key",
          "0 numbers", "14"),
      refusal(
          "segments_fall", good, [&](Problem& p) { p.mask = Mask::segments({queries, falling}); }, "segments.key[9]",
          "2", "predecessor in the sequence, 4"),
  };
}

std::vector<Refusal> scores() {
  const Problem good = good_problem();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  return {
      refusal(
          "scale_nan", good, [&](Problem& p) { p.scale = nan; }, "scale", "nan", "finite"),
      refusal(
          "scale_inf", good, [&](Problem& p) { p.scale = inf; }, "scale", "inf", "finite"),
      refusal(
          "softcap_negative", good, [](Problem& p) { p.softcap = -2.0F; }, "softcap", "-2", "0 (none)"),
      refusal(
          "softcap_nan", good, [&](Problem& p) { p.softcap = nan; }, "softcap", "nan", "0 (none)"),
      refusal(
          "softcap_inf", good, [&](Problem& p) { p.softcap = inf; }, "softcap", "inf", "0 (none)"),
      refusal(
          "bias_batch", good, [](Problem& p) { p.bias_shape = {{3, 1, 5, 7}}; }, "bias_shape[0]", "3", "1 or batch, 2"),
      refusal(
          "bias_heads", good, [](Problem& p) { p.bias_shape = {{1, 3, 5, 7}}; }, "bias_shape[1]", "3",
          "1 or heads_q, 6"),
      refusal(
          "bias_queries", good, [](Problem& p) { p.bias_shape = {{1, 1, 7, 7}}; }, "bias_shape[2]", "7",
          "1 or seq_q, 5"),
      refusal(
          "bias_keys", good, [](Problem& p) { p.bias_shape = {{1, 1, 5, 0}}; }, "bias_shape[3]", "0", "1 or seq_k, 7"),
      refusal(
          "dropout_high", good, [](Problem& p) { p.dropout.probability = 1.5; }, "dropout.probability", "1.5",
          "0 to 1"),
      refusal(
          "dropout_negative", good, [](Problem& p) { p.dropout.probability = -0.25; }, "dropout.probability", "-0.25",
          "0 to 1"),
      refusal(
          "dropout_nan", good, [&](Problem& p) { p.dropout.probability = nan; }, "dropout.probability", "nan",
          "0 to 1"),
      refusal(
          "dropout_query_start", good, [](Problem& p) { p.dropout.query_start = -1; }, "dropout.query_start", "-1",
          "0 to"),
      refusal(
          "dropout_key_start", good, [](Problem& p) { p.dropout.key_start = std::int64_t{1} << 32; },
          "dropout.key_start", "4294967296", "4294967289"),
      refusal(
          "dropout_head_start", good, [](Problem& p) { p.dropout.head_start = -5; }, "dropout.head_start", "-5",
          "0 to"),
      refusal(
          "dropout_batch_start", good, [](Problem& p) { p.dropout.batch_start = std::int64_t{1} << 40; },
          "dropout.batch_start", "1099511627776", "0 to"),
  };
}

std::vector<Refusal> all_refusals() {
  std::vector<Refusal> all;
  for (const auto& part : {extents(), dtypes(), layouts(), masks(), scores()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

class ValidateProblem : public testing::TestWithParam<Refusal> {};

TEST_P(ValidateProblem, NamesArgumentValueAndAccepted) {
  const Refusal& refusal = GetParam();
  test::expect_invalid({refusal.argument, refusal.value, refusal.accepted}, [&] { validate(refusal.problem); });
}

TEST_P(ValidateProblem, PlanRefusesTheSame) {
  const Refusal& refusal = GetParam();
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    test::expect_invalid({refusal.argument, refusal.value}, [&] { Plan::make(refusal.problem, pass); });
  }
}

INSTANTIATE_TEST_SUITE_P(Refusals, ValidateProblem, testing::ValuesIn(all_refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(ValidateProblemAccepts, GoodProblems) {
  EXPECT_NO_THROW(validate(good_problem()));
  EXPECT_NO_THROW(validate(good_ragged()));
}

TEST(ValidateProblemAccepts, EmptyExtents) {
  for (std::int64_t Problem::* extent : {&Problem::batch, &Problem::seq_q, &Problem::seq_k}) {
    Problem problem = good_problem();
    problem.*extent = 0;
    EXPECT_NO_THROW(validate(problem));
  }
  Problem problem = good_problem();
  set_ragged(problem, {0}, {0});
  EXPECT_NO_THROW(validate(problem));
}

TEST(ValidateProblemAccepts, Limits) {
  Problem problem = good_problem();
  problem.dim_qk = 512;
  problem.dim_v = 1;
  problem.dropout = {1.0, 1, (std::int64_t{1} << 32) - 5, 0, 0, 0};
  problem.key_lengths = {0, 7};
  constexpr std::int64_t kFar = std::int64_t{1} << 60;
  problem.mask = Mask::window(kFar, kFar, Alignment::at(-kFar));
  EXPECT_NO_THROW(validate(problem));
}

}  // namespace
}  // namespace tessera
