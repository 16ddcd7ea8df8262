// Predictions: where the arithmetic is simple enough to do by hand, and which term binds.
#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "tessera/distributed.h"

namespace tessera {
namespace {

constexpr int kRanks = 8;

Problem problem_of(const Mask& mask) {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.seq_q = problem.seq_k = 1 << 14;
  problem.heads_q = problem.heads_kv = 4;
  problem.dim_qk = problem.dim_v = 128;
  problem.mask = mask;
  return problem;
}

DistributedOptions with(RingSchedule schedule, SequenceLayout::Kind layout = SequenceLayout::Kind::zigzag,
                        int ranks_per_node = 0) {
  DistributedOptions options;
  options.schedule = schedule;
  options.layout = layout;
  options.links.ranks_per_node = ranks_per_node;
  return options;
}

// A dense pass: kRanks steps of the same work; a block travels beside each but the last.
TEST(Predict, DenseForwardByHand) {
  const Problem problem = problem_of(Mask::none());
  const double pairs = 16384.0 * 16384.0 * 4;
  const double flops = 2 * (128 + 128) * pairs / kRanks;
  const double block = 16384.0 / kRanks * 4 * 128 * 2 * 2;
  ClusterRates rates{1e12, 100e9, 10e9, 0, 0};
  const Prediction fast = predict(problem, Pass::forward, kRanks, with(RingSchedule::ring), rates);
  EXPECT_NEAR(fast.compute_seconds, flops / 1e12, 1e-9);
  EXPECT_NEAR(fast.seconds, flops / 1e12, 1e-9);
  EXPECT_EQ(fast.bytes_sent, static_cast<std::int64_t>(7 * block));
  EXPECT_EQ(fast.binding, "compute");
  EXPECT_DOUBLE_EQ(fast.efficiency(), 1);
  rates.node_bytes_per_second = 1e6;
  const Prediction slow = predict(problem, Pass::forward, kRanks, with(RingSchedule::ring), rates);
  EXPECT_NEAR(slow.seconds, 7 * block / 1e6 + flops / kRanks / 1e12, 1e-6);
  EXPECT_EQ(slow.binding, "node link");
  rates.message_seconds = 5;
  const Prediction late = predict(problem, Pass::forward, kRanks, with(RingSchedule::ring), rates);
  EXPECT_NEAR(late.seconds, slow.seconds + 7 * 5, 1e-6);
}

// Two ranks, zigzag: a causal part of its own and a dense one, each at the rate of the kernel that is most like it.
TEST(Predict, PartsTakeTheRatesOfTheirKernels) {
  const Problem problem = problem_of(Mask::causal());
  ClusterRates rates{1, 1e15, 1e15, 0, 0};
  rates.kernels = {{8192, 8192, true, 1e12}, {1024, 1024, true, 5e11}, {4096, 8192, false, 2e12}};
  const double flops = 2 * (128 + 128) * 4.0;
  const double causal = 8192.0 * 8193 / 2;
  const double dense = 4096.0 * 8192;
  const Prediction two = predict(problem, Pass::forward, 2, with(RingSchedule::ring), rates);
  EXPECT_NEAR(two.seconds, flops * (causal / 1e12 + dense / 2e12), 1e-6);
  EXPECT_NEAR(two.compute_seconds, two.seconds, 1e-9);
  // Two results in 16 bits are read and the output is written.
  rates.memory_bytes_per_second = 1e9;
  const double output = 8192.0 * 4 * 128;
  const Prediction summed = predict(problem, Pass::forward, 2, with(RingSchedule::ring), rates);
  EXPECT_NEAR(summed.seconds, two.seconds + output * 3 * 2 / 1e9, 1e-6);
  EXPECT_NEAR(summed.compute_seconds, two.compute_seconds, 1e-9);
  // On the cores of one machine nothing hides a message.
  rates.memory_bytes_per_second = 0;
  rates.node_bytes_per_second = 1e9;
  rates.cpu_ranks = true;
  const Prediction copied = predict(problem, Pass::forward, 2, with(RingSchedule::ring), rates);
  EXPECT_NEAR(copied.seconds, two.seconds + output * 2 * 2 / 1e9, 1e-6);
  rates.kernels.front().queries = 0;
  test::expect_invalid({"kernels", "0"}, [&] { predict(problem, Pass::forward, 2, with(RingSchedule::ring), rates); });
}

TEST(Predict, ZigzagHalvesTheTimeOfACausalPass) {
  const ClusterRates rates{1e12, 1e15, 1e15, 0, 0};
  const Problem problem = problem_of(Mask::causal());
  const auto seconds = [&](SequenceLayout::Kind layout) {
    return predict(problem, Pass::forward, kRanks, with(RingSchedule::ring, layout), rates).seconds;
  };
  const double contiguous = seconds(SequenceLayout::Kind::contiguous);
  EXPECT_NEAR(seconds(SequenceLayout::Kind::zigzag) / contiguous, 0.5, 0.05);
  EXPECT_NEAR(seconds(SequenceLayout::Kind::striped) / contiguous, 0.5, 0.05);
}

// A slow network delays every step of a flat ring, and one transfer a node of a double ring.
TEST(Predict, DoubleRingHidesASlowNetwork) {
  const Problem problem = problem_of(Mask::causal());
  const ClusterRates rates{1e12, 100e9, 0.5e9, 0, 0};
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const auto of = [&](RingSchedule schedule) {
      return predict(problem, pass, kRanks, with(schedule, SequenceLayout::Kind::zigzag, 4), rates);
    };
    EXPECT_LT(of(RingSchedule::double_ring).seconds, 0.7 * of(RingSchedule::ring).seconds) << pass_name(pass);
    EXPECT_EQ(of(RingSchedule::ring).binding, "network");
    EXPECT_EQ(of(RingSchedule::double_ring).bytes_sent, of(RingSchedule::automatic).bytes_sent);
  }
}

TEST(Predict, NamesWhatIsWrong) {
  const Problem problem = problem_of(Mask::none());
  const auto run = [&](const ClusterRates& rates, const DistributedOptions& options) {
    predict(problem, Pass::forward, kRanks, options, rates);
  };
  test::expect_invalid({"flops_per_second", "0"}, [&] { run({0, 1, 1, 0, 0}, {}); });
  test::expect_invalid({"node_bytes_per_second", "-1"}, [&] { run({1, -1, 1, 0, 0}, {}); });
  test::expect_invalid({"network_bytes_per_second"}, [&] { run({1, 1, 0, 0, 0}, {}); });
  test::expect_invalid({"links.ranks_per_node", "3", "divisors of the number of ranks, 8"},
                       [&] { run({1, 1, 1, 0, 0}, with(RingSchedule::double_ring, SequenceLayout::Kind::zigzag, 3)); });
}

}  // namespace
}  // namespace tessera
