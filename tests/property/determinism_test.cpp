// Results do not depend on the number of threads, on the run, or on who else is running.
#include <gtest/gtest.h>

#include <limits>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::ProblemTensors;
using cli::TensorOptions;
using test::Outputs;
using test::Target;

struct Case {
  std::string name;
  Problem problem;
  TensorOptions options;
};

void PrintTo(const Case& row, std::ostream* out) { *out << row.problem.describe(); }

Case make_case(std::string name, void (*change)(Problem&)) {
  Case result{std::move(name), {}, {}};
  Problem& problem = result.problem;
  problem.batch = 2;
  problem.seq_q = 210;
  problem.seq_k = 333;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = problem.dim_v = 40;
  result.options.seed = 3;
  change(problem);
  return result;
}

std::vector<Case> cases() {
  return {
      make_case("dense", [](Problem&) {}),
      make_case("causal_bfloat16",
                [](Problem& p) {
                  p.dtype = DType::bfloat16;
                  p.mask = Mask::causal();
                }),
      make_case("few_items",  // fewer (batch, head) pairs than threads
                [](Problem& p) {
                  p.batch = p.heads_q = p.heads_kv = 1;
                  p.seq_k = 1500;
                }),
      make_case("broadcast_bias", [](Problem& p) { p.bias_shape = {{1, 1, 210, 333}}; }),
      make_case("block_mask_of_uneven_heads",
                [](Problem& p) {
                  std::vector<BlockMask> heads;
                  for (std::uint64_t h = 0; h < 4; ++h) {
                    heads.push_back(block_patterns::random({210, 333, 32, 64}, 0.2 + 0.2 * static_cast<double>(h), h));
                  }
                  p.mask = Mask::blocks(BlockMask::over_heads(heads));
                }),
      make_case("everything",
                [](Problem& p) {
                  set_ragged(p, {0, 100, 100, 210}, {0, 50, 90, 333});
                  p.mask = Mask::window(60, 20);
                  p.dropout.probability = 0.2;
                  p.softcap = 5.0F;
                  p.alibi = p.sinks = true;
                  p.bias_shape = {{1, 4, 1, 243}};
                }),
  };
}

// What threads share does not depend on the instruction set, so that ThreadSanitizer has the best one alone.
std::vector<Target> targets_of(std::vector<Target> all) {
  const std::string best = all.front().isa;
  if (TESSERA_BEST_ISA_ALONE)
    std::erase_if(all, [&](const Target& one) { return !one.isa.empty() && one.isa != best; });
  return all;
}

class Determinism : public testing::TestWithParam<Case> {};

TEST_P(Determinism, SameBitsForEveryThreadCount) {
  ProblemTensors tensors(GetParam().problem, GetParam().options);
  for (Target target : targets_of(test::all_targets())) {
    SCOPED_TRACE(target.name());
    target.threads = 1;
    const Outputs one = test::run_both(tensors, target.options());
    for (const int threads : {2, 3, 7}) {
      target.threads = threads;
      EXPECT_TRUE(test::bitwise_equal(one, test::run_both(tensors, target.options()))) << threads << " threads";
    }
  }
}

// How many query tiles an item has depends on the threads; what a NaN in one of them does to the others may not.
TEST(DeterminismBesideNaN, SameBitsForEveryThreadCount) {
  const Case row = make_case("nan", [](Problem& p) {
    p.batch = 1;
    p.seq_q = p.seq_k = 1600;
    p.mask = Mask::causal();
  });
  ProblemTensors tensors(row.problem, row.options);
  const ConstTensorView q = tensors.forward().q;
  const_cast<float*>(static_cast<const float*>(q.data))[100 * q.strides[1]] = std::numeric_limits<float>::quiet_NaN();
  for (Target target : targets_of(test::flash_targets())) {
    SCOPED_TRACE(target.name());
    target.threads = 1;
    const Outputs one = test::run_both(tensors, target.options());
    target.threads = 7;
    EXPECT_TRUE(test::bitwise_equal(one, test::run_both(tensors, target.options())));
  }
}

TEST_P(Determinism, SameBitsForEveryRun) {
  ProblemTensors tensors(GetParam().problem, GetParam().options);
  for (Target target : targets_of(test::flash_targets())) {
    target.threads = 3;
    SCOPED_TRACE(target.name());
    const Outputs first = test::run_both(tensors, target.options());
    for (int run = 0; run < 3; ++run) {
      EXPECT_TRUE(test::bitwise_equal(first, test::run_both(tensors, target.options()))) << "run " << run;
    }
  }
}

// One plan, several threads at once, each with its own outputs and workspace.
TEST_P(Determinism, OnePlanRunsFromSeveralThreads) {
  constexpr std::size_t kThreads = 3;
  const Target target{"flash", "", 2};
  const Plan forward = test::make_plan(GetParam().problem, Pass::forward, target);
  const Plan backward = test::make_plan(GetParam().problem, Pass::backward, target);
  std::vector<ProblemTensors> tensors;
  for (std::size_t n = 0; n < kThreads; ++n) tensors.emplace_back(GetParam().problem, GetParam().options);
  std::vector<std::thread> threads;
  for (ProblemTensors& own : tensors) {
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 2; ++repeat) {
        forward.run(own.forward());
        backward.run(own.backward());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ProblemTensors alone(GetParam().problem, GetParam().options);
  const Outputs expected_forward = test::run_pass(alone, forward);
  const Outputs expected_backward = test::run_pass(alone, backward);
  for (const ProblemTensors& own : tensors) {
    EXPECT_TRUE(test::bitwise_equal(test::outputs_of(own, Pass::forward), expected_forward));
    EXPECT_TRUE(test::bitwise_equal(test::outputs_of(own, Pass::backward), expected_backward));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Determinism, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera
