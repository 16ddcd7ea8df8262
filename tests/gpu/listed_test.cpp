// Masks whose tiles are listed, on a GPU: block patterns, segments, and both under bands, against the double-precision oracle.
#include <random>

#include "cli/compare.h"
#include "gpu/gpu_runs.h"
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

using cli::TensorOptions;
using test::gpu_problem;

// Pairs drawn one by one in half of the blocks, none in the others.
BlockMask drawn_pairs(const BlockGrid& grid, double share, unsigned seed) {
  std::mt19937 random(seed);
  std::bernoulli_distribution attends(share);
  std::bernoulli_distribution kept(0.5);
  const BlockMask coarse = BlockMask::from_function(grid, [&](auto, auto) { return kept(random); });
  std::vector<std::uint8_t> pairs;
  for (std::int64_t i = 0; i < grid.queries; ++i) {
    for (std::int64_t j = 0; j < grid.keys; ++j) pairs.push_back(coarse.attends(0, i, j) && attends(random) ? 1 : 0);
  }
  return BlockMask::from_dense(grid, pairs);
}

// Documents of 1 to 200 tokens in each of `sequences` sequences.
std::vector<std::int32_t> documents(const std::vector<std::int64_t>& lengths, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<std::int64_t> length(1, 200);
  std::vector<std::int32_t> ids;
  for (const std::int64_t tokens : lengths) {
    std::int32_t id = 0;
    for (std::int64_t left = tokens, document = 0; left > 0; --left, --document) {
      if (document == 0) {
        document = length(random);
        ++id;
      }
      ids.push_back(id);
    }
  }
  return ids;
}

Mask segments(const std::vector<std::int64_t>& queries, const std::vector<std::int64_t>& keys) {
  return Mask::segments({documents(queries, 1), documents(keys, 2)});
}

class Listed : public test::GpuTest {
 protected:
  static void check(const Problem& problem, const TensorOptions& tensors = {}, bool deterministic = true) {
    if (test::lacks_kernel(problem)) GTEST_SKIP() << "this build has no kernel for it";
    test::expect_conforms(problem, tensors, test::gpu_targets(), deterministic);
  }
};

class ListedDims : public Listed, public testing::WithParamInterface<std::int64_t> {};

TEST_P(ListedDims, EveryDensity) {
  const BlockGrid grid{500, 700, 128, 128};
  for (const double density : {0.0, 0.1, 0.5, 1.0}) {
    check(gpu_problem(500, 700, 2, GetParam(), Mask::blocks(block_patterns::random(grid, density, 3))));
  }
}

TEST_P(ListedDims, BlocksThatAreNotTiles) {
  for (const auto& [block_q, block_k] : {std::pair{64, 64}, {16, 16}, {48, 80}, {256, 384}}) {
    const BlockGrid grid{333, 515, block_q, block_k};
    check(gpu_problem(333, 515, 1, GetParam(), Mask::blocks(block_patterns::random(grid, 0.3, 4))));
  }
}

TEST_P(ListedDims, PartialBlocks) {
  const BlockGrid grid{290, 330, 128, 128};
  for (const double share : {0.01, 0.7}) {
    check(gpu_problem(290, 330, 2, GetParam(), Mask::blocks(drawn_pairs(grid, share, 5))));
  }
}

TEST_P(ListedDims, UnderBands) {
  const BlockGrid grid{400, 450, 128, 128};
  const Mask blocks = Mask::blocks(block_patterns::random(grid, 0.6, 6));
  check(gpu_problem(400, 450, 2, GetParam(), Mask::causal() & blocks));
  check(gpu_problem(400, 450, 2, GetParam(), Mask::window(150, 20) & blocks));
}

TEST_P(ListedDims, Segments) {
  Problem problem = gpu_problem(420, 420, 2, GetParam(), segments({420, 420}, {420, 420}));
  problem.batch = 2;
  check(problem);
  problem.mask = problem.mask & Mask::causal();
  check(problem);
}

INSTANTIATE_TEST_SUITE_P(Listed, ListedDims, testing::Values(64, 96, 128), testing::PrintToStringParamName());

// Forward alone: the backward pass says that it does not.
class ListedWide : public Listed, public testing::WithParamInterface<std::int64_t> {};

TEST_P(ListedWide, Forward) {
  const BlockGrid grid{400, 450, 128, 128};
  for (const Mask& mask : {Mask::blocks(block_patterns::random(grid, 0.4, 6)), Mask::blocks(drawn_pairs(grid, 0.5, 7)),
                           segments({400}, {450})}) {
    const Problem problem = gpu_problem(400, 450, 2, GetParam(), mask);
    EXPECT_NE(test::gpu_refusal(problem, Pass::backward).find("sm90: mask: "), std::string::npos);
    if (test::kernel_missing(test::gpu_refusal(problem, Pass::forward))) {
      GTEST_SKIP() << "this build has no kernel for it";
    }
    cli::CheckOptions options;
    options.backward = false;
    options.plan = test::gpu_options();
    const cli::CheckResult result = cli::check_problem(problem, options);
    for (const cli::OutputCheck& check : result.outputs) {
      EXPECT_TRUE(check.ok()) << check.output << ": error " << check.error << ", allowed " << check.allowed << " "
                              << check.mismatch;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Listed, ListedWide, testing::Values(192, 256), testing::PrintToStringParamName());

TEST_F(Listed, PatternsOfHeadsAndSequences) {
  const BlockGrid grid{300, 410, 128, 128};
  std::vector<BlockMask> sequences;
  for (std::uint64_t b = 0; b < 2; ++b) {
    std::vector<BlockMask> heads;
    for (std::uint64_t h = 0; h < 4; ++h) {
      heads.push_back(block_patterns::random(grid, 0.25 * static_cast<double>(h), 4 * b + h));
    }
    sequences.push_back(BlockMask::over_heads(heads));
  }
  Problem problem = gpu_problem(300, 410, 4, 64, Mask::blocks(BlockMask::over_batch(sequences)));
  problem.batch = 2;
  problem.heads_kv = 2;
  TensorOptions tensors;
  tensors.dlse = true;
  check(problem, tensors);
  check(problem, tensors, false);
}

TEST_F(Listed, Ragged) {
  Problem problem = gpu_problem(0, 0, 2, 64);
  set_ragged(problem, {0, 70, 70, 400, 401}, {0, 131, 140, 540, 540});
  TensorOptions tensors;
  tensors.strides.reset();
  tensors.aligned16 = true;
  const BlockGrid grid{problem.seq_q, problem.seq_k, 128, 128};
  problem.mask = Mask::blocks(block_patterns::random(grid, 0.6, 8));
  check(problem, tensors);
  problem.mask = problem.mask & segments({70, 0, 330, 1}, {131, 9, 400, 0}) & Mask::causal();
  check(problem, tensors);
}

TEST_F(Listed, KeyLengths) {
  const BlockGrid grid{200, 300, 128, 128};
  Problem problem = gpu_problem(200, 300, 2, 64, Mask::blocks(block_patterns::random(grid, 0.8, 9)));
  problem.batch = 4;
  problem.key_lengths = {300, 0, 129, 17};
  check(problem);
}

// Blocks wait for each other's turns and start anew in each run: the bits may not depend on who is first.
TEST_F(Listed, TheSameBitsInEveryRun) {
  const BlockGrid grid{2048, 2048, 128, 128};
  Problem problem =
      gpu_problem(2048, 2048, 12, 64, Mask::blocks(block_patterns::random(grid, 0.4, 10)) & Mask::causal());
  if (test::lacks_kernel(problem)) GTEST_SKIP() << "this build has no kernel for it";
  test::GpuRuns runs(problem);
  const std::vector<std::byte> first = runs.run_to_bytes();
  for (int n = 0; n < 30; ++n) {
    runs.poison();
    ASSERT_EQ(runs.run_to_bytes(), first) << "run " << n;
  }
}

}  // namespace
}  // namespace tessera
