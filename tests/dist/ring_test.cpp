// Attention over ranks equals attention on one device, for every feature, layout, schedule and number of ranks.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/rank_tensors.h"
#include "support/documents.h"
#include "support/functions.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using cli::ProblemTensors;
using cli::TensorOptions;
using test::Outputs;
using Kind = SequenceLayout::Kind;

constexpr double kFloat32Allowed = 2e-6;

struct Case {
  std::string name;
  Problem problem;
  TensorOptions tensors;
};

void PrintTo(const Case& row, std::ostream* out) { *out << row.problem.describe(); }

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, const auto& change) {
    Case row;
    row.name = std::move(name);
    row.problem.batch = 2;
    row.problem.seq_q = row.problem.seq_k = 61;
    row.problem.heads_q = 4;
    row.problem.heads_kv = 2;
    row.problem.dim_qk = 16;
    row.problem.dim_v = 12;
    row.tensors.dlse = true;
    change(row.problem, row.tensors);
    all.push_back(std::move(row));
  };
  add("dense", [](Problem& p, auto&) { p.heads_kv = 4; });
  add("causal_grouped", [](Problem& p, auto&) { p.mask = Mask::causal(); });
  add("causal_more_keys", [](Problem& p, TensorOptions& t) {
    p.mask = Mask::causal();
    p.seq_k = 90;
    t.strides.reset();
  });
  add("window", [](Problem& p, auto&) { p.mask = Mask::window(9, 3); });
  add("packed_documents",
      [](Problem& p, auto&) { p.mask = Mask::causal() & Mask::segments(test::documents(2, 61, 61)); });
  add("key_lengths", [](Problem& p, auto&) {
    p.mask = Mask::causal();
    p.key_lengths = {61, 17};
  });
  add("dropout", [](Problem& p, auto&) {
    p.mask = Mask::causal();
    p.dropout = {0.4, 11, 5, 70, 2, 1, 1, 1};
  });
  add("alibi", [](Problem& p, TensorOptions& t) {
    p.alibi = true;
    t.alibi_per_batch = true;
  });
  add("alibi_causal_softcap", [](Problem& p, auto&) {
    p.alibi = true;
    p.softcap = 2.0F;
    p.mask = Mask::window(40, 0);
  });
  add("score_function", [](Problem& p, auto&) {
    p.score_function = test::gated_distance({0.5F});
    p.mask = Mask::causal();
    p.function_positions = {1, 2, 30, 20, 1, 1};
  });
  add("score_function_that_hides", [](Problem& p, auto&) {
    p.score_function = test::nearby({9});
    p.key_lengths = {61, 30};
  });
  add("mask_function", [](Problem& p, auto&) {
    p.mask_function = test::striped_heads();
    p.mask = Mask::causal();
  });
  add("mask_function_of_the_batch", [](Problem& p, auto&) {
    std::vector<float> documents{61};
    for (int token = 0; token < 2 * 61; ++token) documents.push_back(static_cast<float>(token % 61 / 17));
    p.mask_function = test::same_document(documents);
  });
  add("mask_and_score_function", [](Problem& p, TensorOptions& t) {
    p.mask_function = test::dilated({3, 40});
    p.score_function = test::gated_distance({0.5F});
    p.dropout = {0.4, 11, 5, 70, 2, 1, 1, 1};
    t.dlse = true;
  });
  add("bias_of_every_pair", [](Problem& p, auto&) { p.bias_shape = {{2, 4, 61, 61}}; });
  add("bias_of_keys", [](Problem& p, auto&) {
    p.mask = Mask::causal();
    p.bias_shape = {{1, 4, 1, 61}};
  });
  add("sinks", [](Problem& p, auto&) {
    p.sinks = true;
    p.mask = Mask::window(5, 0);
  });
  add("blocks", [](Problem& p, auto&) {
    p.seq_q = p.seq_k = 192;
    p.mask = Mask::blocks(block_patterns::random({192, 192, 16, 32}, 0.25, 5));
  });
  add("causal_blocks_by_head_and_sequence", [](Problem& p, auto&) {
    p.seq_k = 150;
    std::vector<BlockMask> sequences;
    for (std::uint64_t b = 0; b < 2; ++b) {
      std::vector<BlockMask> heads;
      for (std::uint64_t head = 0; head < 4; ++head) {
        heads.push_back(block_patterns::random({61, 150, 16, 16}, 0.4, 10 * b + head));
      }
      sequences.push_back(BlockMask::over_heads(heads));
    }
    p.mask = Mask::causal() & Mask::blocks(BlockMask::over_batch(sequences));
  });
  add("blocks_alibi_dropout_bias", [](Problem& p, auto&) {
    p.seq_q = p.seq_k = 100;
    p.mask = Mask::window(60, 0) & Mask::blocks(block_patterns::strided({100, 100, 16, 16}, 3));
    p.alibi = true;
    p.dropout = {0.3, 5, 0, 0, 0, 0, 1, 1};
    p.bias_shape = {{1, 4, 1, 100}};
  });
  add("rows_that_see_nothing", [](Problem& p, auto&) { p.mask = Mask::causal(Alignment::at(-20)); });
  add("fewer_tokens_than_ranks", [](Problem& p, auto&) { p.seq_q = p.seq_k = 3; });
  add("no_tokens", [](Problem& p, auto&) { p.seq_q = p.seq_k = 0; });
  return all;
}

// Both passes over ranks, on poisoned outputs.
Outputs over_ranks(ProblemTensors& tensors, int ranks, const DistributedOptions& options) {
  tensors.poison_outputs();
  Outputs all;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    cli::run_on_local_ranks(tensors, pass, ranks, options);
    for (test::NamedValues& output : test::outputs_of(tensors, pass)) all.push_back(std::move(output));
  }
  return all;
}

Outputs of_the_oracle(const ProblemTensors& tensors) {
  ProblemTensors wide = tensors.widened();
  PlanOptions oracle;
  oracle.impl = "reference";
  return test::run_both(wide, oracle);
}

DistributedOptions with(RingSchedule schedule, Kind layout, int ranks_per_node = 0) {
  DistributedOptions options;
  options.schedule = schedule;
  options.layout = layout;
  options.links.ranks_per_node = ranks_per_node;
  options.plan.threads = 1;
  return options;
}

void expect_near(const Outputs& found, const Outputs& expected, double allowed) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t n = 0; n < found.size(); ++n) {
    EXPECT_LE(test::relative_error(found[n].values, expected[n].values), allowed) << found[n].name;
  }
}

class Ring : public ::testing::TestWithParam<Case> {};

// All of them or, where a sanitizer makes each ten times as long, one: the features take turns.
template <class T, std::size_t kCount>
std::span<const T> in_turn(const std::array<T, kCount>& all, std::size_t turn) {
  return TESSERA_RANKS_IN_TURN ? std::span(all).subspan(turn % kCount, 1) : std::span(all);
}

TEST_P(Ring, EqualsOneDevice) {
  ProblemTensors tensors(GetParam().problem, GetParam().tensors);
  const Outputs expected = of_the_oracle(tensors);
  // Sums of a few numbers of either sign cancel: the contract allows them five times as much.
  const double allowed =
      GetParam().problem.sinks || GetParam().problem.bias_shape ? 5 * kFloat32Allowed : kFloat32Allowed;
  std::size_t turn = std::hash<std::string>()(GetParam().name);
  for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
    ++turn;
    for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
      const std::array all = schedule == RingSchedule::ring ? std::array{1, 4, 7} : std::array{2, 5, 8};
      for (const int ranks : in_turn(all, turn)) {
        SCOPED_TRACE(std::string(layout_name(layout)) + " " + std::string(schedule_name(schedule)) + " over " +
                     std::to_string(ranks));
        expect_near(over_ranks(tensors, ranks, with(schedule, layout)), expected, allowed);
      }
    }
    const std::array nodes{std::pair{4, 2}, std::pair{6, 3}, std::pair{6, 2}, std::pair{3, 1}};
    for (const auto& [ranks, in_node] : in_turn(nodes, turn)) {
      SCOPED_TRACE(std::string(layout_name(layout)) + " double_ring over " + std::to_string(ranks) + " by " +
                   std::to_string(in_node));
      expect_near(over_ranks(tensors, ranks, with(RingSchedule::double_ring, layout, in_node)), expected, allowed);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Features, Ring, ::testing::ValuesIn(cases()), [](const auto& row) { return row.param.name; });

// bfloat16: at most 2.5 times the error of one device and 2e-3, and no more of it with more ranks.
TEST(RingPrecision, BFloat16DoesNotGrowWithRanks) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = problem.seq_k = 160;
  problem.heads_q = 2;
  problem.heads_kv = 1;
  problem.dim_qk = problem.dim_v = 32;
  problem.mask = Mask::causal();
  ProblemTensors tensors(problem, {});
  const Outputs expected = of_the_oracle(tensors);
  PlanOptions flash;
  flash.threads = 1;
  const Outputs alone = test::run_both(tensors, flash);
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
    for (const int ranks : {1, 2, 4, 7, 8}) {
      const Outputs found = over_ranks(tensors, ranks, with(schedule, Kind::zigzag));
      for (std::size_t n = 0; n < found.size(); ++n) {
        const double error = test::relative_error(alone[n].values, expected[n].values);
        EXPECT_LE(test::relative_error(found[n].values, expected[n].values), 2.5 * error + 2e-3)
            << found[n].name << " over " << ranks;
        EXPECT_LE(test::relative_error(found[n].values, expected[n].values), 1.5 * error + 1e-6)
            << found[n].name << " over " << ranks;
      }
    }
  }
}

TEST(RingPrecision, RunsAreBitwiseEqual) {
  Problem problem;
  problem.seq_q = problem.seq_k = 130;
  problem.heads_q = problem.heads_kv = 2;
  problem.dim_qk = problem.dim_v = 16;
  problem.mask = Mask::causal();
  problem.dropout.probability = 0.2;
  ProblemTensors tensors(problem, {});
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
    DistributedOptions options = with(schedule, Kind::zigzag, 2);
    const Outputs first = over_ranks(tensors, 4, options);
    options.plan.threads = 2;
    EXPECT_TRUE(test::bitwise_equal(first, over_ranks(tensors, 4, options))) << schedule_name(schedule);
  }
}

// V is the unit matrix, so O holds the weights: which are 0 is what dropout has dropped.
TEST(RingDropout, DropsTheSameElementsAsOneDevice) {
  Problem problem;
  problem.seq_q = problem.seq_k = problem.dim_v = 48;
  problem.dim_qk = 8;
  problem.dropout = {0.5, 3, 100, 200, 1, 2, 1, 1};
  ProblemTensors tensors(problem, {});
  test::Values unit(48 * 48, 0.0);
  for (std::size_t n = 0; n < 48; ++n) unit[n * 49] = 1;
  test::assign(tensors.v, unit);
  attention_forward(problem, tensors.forward());
  const test::Values expected = tensors.out.values();
  for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
    for (const int ranks : {2, 3, 7}) {
      tensors.poison_outputs();
      cli::run_on_local_ranks(tensors, Pass::forward, ranks, with(RingSchedule::ring, layout));
      const test::Values found = tensors.out.values();
      for (std::size_t n = 0; n < found.size(); ++n) {
        ASSERT_EQ(found[n] == 0, expected[n] == 0) << layout_name(layout) << " over " << ranks << ", element " << n;
      }
    }
  }
}

}  // namespace
}  // namespace tessera
