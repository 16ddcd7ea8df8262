// A rank's memory is its own tokens and a few travelling blocks, whatever the number of ranks.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cli/rank_tensors.h"
#include "support/allocation_counter.h"
#include "tessera/distributed.h"

namespace tessera {
namespace {

constexpr std::int64_t kLocalTokens = 512;
constexpr std::int64_t kTensorBytes = 16 << 10;  // smaller allocations are no tensors

struct Use {
  std::int64_t making = 0;   // bytes, of all ranks
  std::int64_t running = 0;  // allocations of tensors
  std::int64_t planned = 0;  // bytes that the plans tell
};

Use use_of(Pass pass, RingSchedule schedule, int ranks) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = problem.seq_k = kLocalTokens * ranks;
  problem.heads_q = problem.heads_kv = 4;
  problem.dim_qk = problem.dim_v = 32;
  problem.mask = Mask::causal();
  DistributedOptions options;
  options.schedule = schedule;
  options.links.ranks_per_node = schedule == RingSchedule::double_ring ? 2 : 0;
  options.plan.threads = 1;
  const cli::ProblemTensors whole(problem, {});
  std::vector<std::unique_ptr<cli::RankTensors>> parts;
  for (int rank = 0; rank < ranks; ++rank) {
    parts.push_back(std::make_unique<cli::RankTensors>(whole, options.layout, rank, ranks));
  }
  std::vector<std::optional<DistributedPlan>> plans(parts.size());
  auto communicators = local_communicators(ranks);
  const auto on_all_ranks = [&](const auto& body) {
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < parts.size(); ++rank) threads.emplace_back([&, rank] { body(rank); });
    for (std::thread& thread : threads) thread.join();
  };
  Use use;
  use.making = test::counted(
                   [&] {
                     on_all_ranks([&](std::size_t rank) {
                       plans[rank] = DistributedPlan::make(problem, pass, *communicators[rank], options);
                     });
                   },
                   kTensorBytes)
                   .bytes;
  use.running = test::counted(
                    [&] {
                      on_all_ranks([&](std::size_t rank) {
                        if (pass == Pass::forward) {
                          plans[rank]->run(parts[rank]->forward());
                        } else {
                          plans[rank]->run(parts[rank]->backward());
                        }
                      });
                    },
                    kTensorBytes)
                    .allocations;
  for (const auto& plan : plans) use.planned += plan->facts().memory_bytes;
  return use;
}

TEST(DistributedMemory, DoesNotGrowWithRanks) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
      SCOPED_TRACE(std::string(pass_name(pass)) + " " + std::string(schedule_name(schedule)));
      const Use four = use_of(pass, schedule, 4);
      const Use eight = use_of(pass, schedule, 8);
      EXPECT_EQ(four.running, 0);
      EXPECT_EQ(eight.running, 0);
      EXPECT_GE(eight.making, eight.planned * 99 / 100);
      EXPECT_LE(eight.making, eight.planned * 101 / 100) << "allocated besides what the facts say";
      EXPECT_LE(eight.making / 8, four.making / 4 * 101 / 100);
    }
  }
}

// Forward: two travelling blocks of K and V, O and LSE, one partial result, and the kernel's workspace of one part.
TEST(DistributedMemory, IsLocalAndTwoTravellingBlocks) {
  constexpr std::int64_t kHeads = 4, kDim = 32;
  const std::int64_t block = kLocalTokens * kHeads * kDim * 2 * 2;
  const std::int64_t result = kLocalTokens * kHeads * (kDim + 1) * 4;
  Problem part;
  part.dtype = DType::bfloat16;
  part.output_dtype = DType::float32;
  part.seq_q = part.seq_k = kLocalTokens;
  part.heads_q = part.heads_kv = kHeads;
  part.dim_qk = part.dim_v = kDim;
  PlanOptions options;
  options.threads = 1;
  const std::int64_t workspace = Plan::make(part, Pass::forward, options).workspace_bytes();
  EXPECT_LE(use_of(Pass::forward, RingSchedule::ring, 8).planned / 8, 2 * block + 2 * result + workspace);
}

}  // namespace
}  // namespace tessera
