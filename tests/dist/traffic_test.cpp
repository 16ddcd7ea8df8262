// What each schedule sends, to the byte, and how even the work is.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "cli/rank_tensors.h"
#include "tessera/distributed.h"

namespace tessera {
namespace {

using Kind = SequenceLayout::Kind;

constexpr std::int64_t kTokens = 48;  // divisible by twice each number of ranks
constexpr std::int64_t kDim = 8;

Problem problem_of(std::int64_t heads_q, std::int64_t heads_kv, const Mask& mask = Mask::none()) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.batch = 2;
  problem.seq_q = problem.seq_k = kTokens;
  problem.heads_q = heads_q;
  problem.heads_kv = heads_kv;
  problem.dim_qk = problem.dim_v = kDim;
  problem.mask = mask;
  return problem;
}

DistributedOptions with(RingSchedule schedule, Kind layout = Kind::zigzag, int ranks_per_node = 0) {
  DistributedOptions options;
  options.schedule = schedule;
  options.layout = layout;
  options.links.ranks_per_node = ranks_per_node;
  options.plan.threads = 1;
  return options;
}

struct Sent {
  std::int64_t counted;  // by the communicator
  std::int64_t planned;
};

// By each rank in one run.
std::vector<Sent> sent(const Problem& problem, Pass pass, int ranks, const DistributedOptions& options) {
  const cli::ProblemTensors whole(problem, {});
  if (pass == Pass::backward) {
    cli::run_on_local_ranks(whole, Pass::forward, ranks, options);
  }
  std::vector<Sent> all(static_cast<std::size_t>(ranks));
  run_local_ranks(ranks, [&](Communicator& communicator) {
    const cli::RankTensors part(whole, options.layout, communicator.rank(), ranks);
    DistributedPlan plan = DistributedPlan::make(problem, pass, communicator, options);
    const RunReport report = pass == Pass::forward ? plan.run(part.forward()) : plan.run(part.backward());
    all[static_cast<std::size_t>(communicator.rank())] = {report.traffic.bytes_sent, plan.facts().bytes_sent};
  });
  return all;
}

std::int64_t total(const Problem& problem, Pass pass, int ranks, const DistributedOptions& options) {
  std::int64_t bytes = 0;
  for (const DistributedFacts& facts : distributed_facts(problem, pass, ranks, options)) bytes += facts.bytes_sent;
  return bytes;
}

// Bytes of a token, layer and hop: 16-bit tensors, float32 gradients.
std::int64_t ring_forward(const Problem& p) { return 4 * kDim * p.heads_kv; }
std::int64_t ring_backward(const Problem& p) { return (4 + 8) * kDim * p.heads_kv; }
std::int64_t burst_backward(const Problem& p) { return (4 + 4) * kDim * p.heads_q + 8 * p.heads_q; }

TEST(Traffic, IsTheFormulas) {
  for (const int ranks : {2, 3, 4, 8}) {
    for (const std::int64_t heads_kv : {8, 2, 1}) {
      for (const Mask& mask : {Mask::none(), Mask::causal()}) {
        const Problem problem = problem_of(8, heads_kv, mask);
        const std::int64_t hops = problem.batch * kTokens / ranks * (ranks - 1);
        const auto expect = [&](Pass pass, RingSchedule schedule, std::int64_t bytes, int ranks_per_node = 0) {
          for (const Sent& rank : sent(problem, pass, ranks, with(schedule, Kind::zigzag, ranks_per_node))) {
            EXPECT_EQ(rank.counted, bytes * hops)
                << pass_name(pass) << " " << schedule_name(schedule) << " over " << ranks << ": " << problem.describe();
            EXPECT_EQ(rank.planned, rank.counted);
          }
        };
        expect(Pass::forward, RingSchedule::ring, ring_forward(problem));
        expect(Pass::forward, RingSchedule::burst, ring_forward(problem));
        expect(Pass::backward, RingSchedule::ring, ring_backward(problem));
        expect(Pass::backward, RingSchedule::burst, burst_backward(problem));
        expect(Pass::backward, RingSchedule::automatic, std::min(ring_backward(problem), burst_backward(problem)));
        if (ranks % 2 == 0) {
          expect(Pass::backward, RingSchedule::double_ring, std::min(ring_backward(problem), burst_backward(problem)),
                 2);
        }
      }
    }
  }
}

TEST(Traffic, AutomaticNeverSendsMoreThanTheCheaper) {
  std::vector<Mask> masks{Mask::none(), Mask::causal(), Mask::window(7, 0), Mask::window(0, 20)};
  for (const Mask& mask : masks) {
    for (const auto& [heads_q, heads_kv] : {std::pair{8, 8}, {9, 3}, {8, 4}, {8, 1}}) {
      for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
        for (const int ranks : {2, 5, 8}) {
          Problem problem = problem_of(heads_q, heads_kv, mask);
          problem.seq_k = 70;
          const auto bytes = [&](RingSchedule schedule) {
            return total(problem, Pass::backward, ranks, with(schedule, layout));
          };
          EXPECT_EQ(bytes(RingSchedule::automatic), std::min(bytes(RingSchedule::ring), bytes(RingSchedule::burst)));
        }
      }
    }
  }
}

// The paper's setting: as many key heads as query heads, 16-bit tensors.
TEST(Traffic, BurstSavesAQuarterWithFloat32Gradients) {
  Problem problem = problem_of(8, 8);
  problem.dim_qk = problem.dim_v = 128;
  const auto both_passes = [&](RingSchedule schedule) {
    return static_cast<double>(total(problem, Pass::forward, 4, with(schedule)) +
                               total(problem, Pass::backward, 4, with(schedule)));
  };
  EXPECT_NEAR(1 - both_passes(RingSchedule::burst) / both_passes(RingSchedule::ring), 0.25, 0.005);
}

// Under a causal mask and contiguous parts no rank needs the keys that come after its own: they stay.
TEST(Traffic, BlocksThatNobodyNeedsStay) {
  const Problem causal = problem_of(2, 2, Mask::causal());
  const auto facts = distributed_facts(causal, Pass::forward, 4, with(RingSchedule::ring, Kind::contiguous));
  const std::int64_t block = causal.batch * kTokens / 4 * ring_forward(causal);
  EXPECT_EQ(facts[0].bytes_sent, block);      // its own
  EXPECT_EQ(facts[2].bytes_sent, 3 * block);  // those of ranks 0 to 2
  EXPECT_EQ(facts[3].bytes_sent, 0);
  EXPECT_EQ(facts[0].steps_computed, 1);
  EXPECT_EQ(facts[3].steps_computed, 4);
  const Problem narrow = problem_of(2, 2, Mask::window(3, 0));
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    for (const Sent& rank : sent(narrow, pass, 4, with(RingSchedule::ring, Kind::contiguous))) {
      EXPECT_EQ(rank.counted, rank.planned);
    }
  }
  const auto of_narrow = distributed_facts(narrow, Pass::forward, 4, with(RingSchedule::ring, Kind::contiguous));
  EXPECT_EQ(of_narrow[2].bytes_sent, block);
  EXPECT_EQ(of_narrow[2].steps_computed, 2);
}

// The pairs of a block mask alone count, in every layout: rank r's queries see the keys of rank r + 1 of 4 and no others.
TEST(Traffic, StepsWithoutKeptBlocksCostNothing) {
  for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
    Problem problem = problem_of(2, 2);
    problem.seq_q = problem.seq_k = 512;
    const SequenceLayout tokens(layout, 512, 4);
    std::vector<int> owner(512);
    for (int rank = 0; rank < 4; ++rank) {
      for (const Stripe& piece : tokens.pieces(rank)) {
        for (std::int64_t i = 0; i < piece.count; ++i) owner[static_cast<std::size_t>(piece.position(i))] = rank;
      }
    }
    std::vector<std::uint8_t> attends;
    for (const int query : owner) {
      for (const int key : owner) attends.push_back(key == (query + 1) % 4 ? 1 : 0);
    }
    problem.mask = Mask::blocks(BlockMask::from_dense({512, 512, 32, 32}, attends));
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const auto facts = distributed_facts(problem, pass, 4, with(RingSchedule::ring, layout));
      const std::vector<Sent> ranks = sent(problem, pass, 4, with(RingSchedule::ring, layout));
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        EXPECT_EQ(facts[rank].steps_computed, 1) << layout_name(layout);
        EXPECT_EQ(facts[rank].tiles.pairs, problem.batch * problem.heads_q * 128 * 128);
        EXPECT_EQ(ranks[rank].counted, ranks[rank].planned);
      }
      // A block goes forward to the rank before its owner, three hops, and its gradients come home by one more.
      const std::int64_t block = problem.batch * 128;
      const std::int64_t bytes =
          pass == Pass::forward ? 3 * ring_forward(problem) : 3 * ring_forward(problem) + 8 * kDim * problem.heads_kv;
      EXPECT_EQ(facts[0].bytes_sent, block * bytes) << layout_name(layout);
    }
  }
}

// What leaves a node goes around once.
TEST(Traffic, DoubleRingSendsLittleBetweenNodes) {
  const Problem problem = problem_of(8, 8);
  const std::int64_t block = problem.batch * kTokens / 8 * ring_forward(problem);
  for (const DistributedFacts& facts :
       distributed_facts(problem, Pass::forward, 8, with(RingSchedule::automatic, Kind::zigzag, 4))) {
    EXPECT_EQ(facts.schedule, RingSchedule::double_ring);
    EXPECT_EQ(facts.bytes_sent_to_nodes, block);
    EXPECT_EQ(facts.bytes_sent, 7 * block);
  }
}

TEST(Balance, CausalWorkIsEven) {
  Problem problem = problem_of(1, 1, Mask::causal());
  problem.batch = 1;
  problem.seq_q = problem.seq_k = 8 * 4096;
  for (const Kind layout : {Kind::zigzag, Kind::striped}) {
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    std::int64_t most = 0;
    for (const DistributedFacts& facts :
         distributed_facts(problem, Pass::forward, 8, with(RingSchedule::ring, layout))) {
      const std::int64_t visited = facts.tiles.full + facts.tiles.partial;
      least = std::min(least, visited);
      most = std::max(most, visited);
    }
    EXPECT_LE(static_cast<double>(most), 1.03 * static_cast<double>(least)) << layout_name(layout);
  }
}

}  // namespace
}  // namespace tessera
