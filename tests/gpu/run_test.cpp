// How plans run: the same bits every time, in graphs, on several streams, with and without a workspace.
#include <thread>

#include "cli/random.h"
#include "gpu/gpu_runs.h"

namespace tessera {
namespace {

using test::bitwise_equal;
using test::gpu_problem;
using test::GpuRuns;
using test::GpuTest;
using test::Outputs;

// Of three key heads the last has no second one to be dealt with.
Problem grouped(std::int64_t dim, std::int64_t members, std::int64_t keys = 1100) {
  Problem problem = gpu_problem(700, keys, 3 * members, dim, Mask::causal());
  problem.heads_kv = 3;
  return problem;
}

std::vector<Problem> problems() {
  std::vector<Problem> all;
  for (const std::int64_t dim : {64, 128}) {
    Problem dense = gpu_problem(1000, 1000, 4, dim);
    dense.batch = 2;
    Problem causal = gpu_problem(1500, 1500, 8, dim, Mask::causal());
    causal.heads_kv = 2;
    Problem ragged = gpu_problem(0, 0, 4, dim, Mask::window(300, 10));
    set_ragged(ragged, {0, 700, 701, 1600}, {0, 900, 1000, 1900});
    all.insert(all.end(), {dense, causal, ragged, grouped(dim, 5)});
  }
  return all;
}

// Blocks of the backward pass that are done round dQ, and count the tiles that they take, under listed masks.
std::vector<Problem> with_listed(std::vector<Problem> all) {
  for (const std::int64_t dim : {64, 128}) {
    all.push_back(gpu_problem(700, 1100, 4, dim,
                              Mask::causal() & Mask::blocks(block_patterns::random({700, 1100, 64, 64}, 0.5, 3))));
    all.back().heads_kv = 2;
  }
  return all;
}

class GpuRun : public GpuTest {};

TEST_F(GpuRun, SameBitsInFiftyRuns) {
  for (const Problem& problem : with_listed(problems())) {
    SCOPED_TRACE(problem.describe());
    GpuRuns runs(problem);
    const std::vector<std::byte> first = runs.run_to_bytes();
    for (int run = 1; run < 50; ++run) {
      ASSERT_TRUE(first == runs.run_to_bytes()) << "run " << run;
    }
  }
}

TEST_F(GpuRun, AnyOrderStaysWithinTheContract) {
  for (const std::int64_t dim : {64, 128}) {
    for (const Mask& mask : {Mask::none(), Mask::causal()}) {
      test::expect_conforms(gpu_problem(500, 600, 2, dim, mask), {}, test::gpu_targets(), false);
    }
  }
}

TEST_F(GpuRun, GroupedHeadsConform) {
  for (const std::int64_t dim : {64, 128}) {
    for (const std::int64_t members : {2, 3, 4, 7}) {
      for (const bool deterministic : {true, false}) {
        test::expect_conforms(grouped(dim, members), {}, test::gpu_targets(), deterministic);
      }
    }
  }
}

// More tiles of keys than multiprocessors: in chunks, and a head that is without a second one in halves.
TEST_F(GpuRun, GroupedHeadsInChunksConform) {
  for (const std::int64_t dim : {64, 128}) {
    for (const std::int64_t heads_kv : {1, 2}) {
      for (const Mask& mask : {Mask::none(), Mask::causal(), Mask::window(9000, 0)}) {
        Problem problem = gpu_problem(300, 20100, 2 * heads_kv, dim, mask);
        problem.heads_kv = heads_kv;
        test::expect_conforms(problem, {}, test::gpu_targets());
      }
    }
  }
}

// New numbers in the host's inputs.
void refill(cli::ProblemTensors& tensors, std::uint64_t seed) {
  cli::Random random(seed);
  for (cli::HostTensor* tensor : {&tensors.q, &tensors.k, &tensors.v, &tensors.dout}) {
    tensor->fill([&] { return random.normal(); });
  }
}

TEST_F(GpuRun, GraphReplaysOnChangedInputs) {
  for (const Problem& problem : with_listed(problems())) {
    SCOPED_TRACE(problem.describe());
    GpuRuns runs(problem);
    runs.run();  // what a first run loads is loaded
    runs.stream.capture([&] { runs.enqueue(); });
    for (const std::uint64_t seed : {11, 12}) {
      refill(runs.host, seed);
      runs.poison();
      runs.stream.replay();
      const Outputs replayed = runs.fetch();
      runs.poison();
      EXPECT_TRUE(bitwise_equal(replayed, runs.run())) << "seed " << seed;
    }
  }
}

TEST_F(GpuRun, WithoutAWorkspaceOfTheCaller) {
  for (const Problem& problem : with_listed(problems())) {
    GpuRuns runs(problem);
    const Outputs expected = runs.run();
    runs.poison();
    for (int run = 0; run < 3; ++run) {  // memory of one run is that of the next
      runs.forward.run(runs.forward_tensors(), {}, runs.stream.handle());
      runs.backward.run(runs.backward_tensors(), {}, runs.stream.handle());
    }
    EXPECT_TRUE(bitwise_equal(expected, runs.fetch())) << problem.describe();
  }
}

TEST_F(GpuRun, OnTheDefaultStream) {
  GpuRuns runs(problems().front());
  const Outputs expected = runs.run();
  runs.poison();
  runs.forward.run(runs.forward_tensors(), runs.forward_workspace.bytes());
  runs.backward.run(runs.backward_tensors(), runs.backward_workspace.bytes());
  EXPECT_TRUE(bitwise_equal(expected, runs.fetch())) << "copies wait for the default stream";
}

TEST_F(GpuRun, LseMayBeAbsent) {
  GpuRuns runs(problems().front());
  const test::Values expected = runs.run().front().values;
  runs.poison();
  ForwardTensors tensors = runs.forward_tensors();
  tensors.lse = {};
  runs.forward.run(tensors, runs.forward_workspace.bytes(), runs.stream.handle());
  EXPECT_TRUE(bitwise_equal(expected, runs.fetch().front().values));
}

TEST_F(GpuRun, TwoStreamsAtOnce) {
  for (const Problem& problem : with_listed(problems())) {
    GpuRuns a(problem), b(problem, {.seed = 5});
    const Outputs expected_a = a.run();
    const Outputs expected_b = b.run();
    a.poison();
    b.poison();
    for (int run = 0; run < 10; ++run) {
      a.enqueue();
      b.enqueue();
    }
    EXPECT_TRUE(bitwise_equal(expected_a, a.fetch())) << problem.describe();
    EXPECT_TRUE(bitwise_equal(expected_b, b.fetch())) << problem.describe();
  }
}

// One plan for several threads of the host, each with its own stream, tensors and workspace.
TEST_F(GpuRun, OnePlanRunsFromSeveralThreads) {
  constexpr std::size_t kThreads = 3;
  const Problem problem = problems()[1];
  std::vector<std::unique_ptr<GpuRuns>> runs;
  for (std::uint64_t n = 0; n < kThreads; ++n) {
    runs.push_back(std::make_unique<GpuRuns>(problem, cli::TensorOptions{.seed = n}));
  }
  std::vector<Outputs> expected;
  for (const auto& own : runs) expected.push_back(own->run());
  std::vector<std::thread> threads;
  for (const auto& own : runs) {
    threads.emplace_back([&own, &plans = *runs.front()] {
      for (int run = 0; run < 20; ++run) {
        plans.forward.run(own->forward_tensors(), own->forward_workspace.bytes(), own->stream.handle());
        plans.backward.run(own->backward_tensors(), own->backward_workspace.bytes(), own->stream.handle());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t n = 0; n < kThreads; ++n) EXPECT_TRUE(bitwise_equal(expected[n], runs[n]->fetch())) << n;
}

TEST_F(GpuRun, FactsNameEveryKernel) {
  for (const Problem& problem : problems()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const Plan plan = test::gpu_plan(problem, pass);
      const PlanFacts& facts = plan.facts();
      EXPECT_EQ(facts.impl, "sm90");
      EXPECT_GT(facts.tiles.full + facts.tiles.partial, 0);
      bool with_tiles = false;
      for (const KernelFacts& kernel : facts.kernels) {
        EXPECT_FALSE(kernel.name.empty());
        EXPECT_GT(kernel.threads, 0) << kernel.name;
        EXPECT_GT(kernel.registers, 0) << kernel.name;
        EXPECT_EQ(kernel.spill_bytes, 0) << kernel.name;
        EXPECT_GT(kernel.blocks, 0) << kernel.name;
        with_tiles = with_tiles || (kernel.tile_q == facts.tile_q && kernel.tile_k == facts.tile_k && kernel.waves > 0);
        EXPECT_NE(plan.explain().find(kernel.name), std::string::npos) << kernel.name;
      }
      EXPECT_TRUE(with_tiles) << "none has the tiles of the plan";
    }
  }
}

}  // namespace
}  // namespace tessera
