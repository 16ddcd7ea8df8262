// One sequence over four ranks, each a thread that owns a quarter of the tokens.
//
// The same code runs as processes of an MPI job with tessera::mpi_communicator() from <tessera/mpi.h>: only the line that
// makes the communicators differs. No rank ever holds all keys, and only blocks that somebody needs are sent.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <random>
#include <tuple>
#include <vector>

#include "tessera/tessera.h"

namespace {

constexpr int kRanks = 4;
constexpr std::int64_t kTokens = 1001;  // no divisor of anything
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kDim = 32;

using Floats = std::vector<float>;

Floats random_floats(unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(kTokens * kHeads * kDim));
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

tessera::TensorView tokens_of(Floats& values, std::int64_t tokens) {
  values.resize(static_cast<std::size_t>(tokens * kHeads * kDim));
  return {values.data(), tessera::DType::float32, {1, tokens, kHeads, kDim}};
}

}  // namespace

int main() {
  Floats q = random_floats(1);
  Floats k = random_floats(2);
  Floats v = random_floats(3);
  Floats expected;
  Floats gathered;
  const tessera::TensorView whole_out = tokens_of(gathered, kTokens);
  tessera::attention_forward(tokens_of(q, kTokens), tokens_of(k, kTokens), tokens_of(v, kTokens),
                             tokens_of(expected, kTokens), {}, {.mask = tessera::Mask::causal()});

  // The whole problem, the same on every rank.
  tessera::Problem problem;
  problem.seq_q = problem.seq_k = kTokens;
  problem.heads_q = problem.heads_kv = kHeads;
  problem.dim_qk = problem.dim_v = kDim;
  problem.mask = tessera::Mask::causal();
  const tessera::SequenceLayout layout(tessera::SequenceLayout::Kind::zigzag, kTokens, kRanks);

  std::mutex printing;
  tessera::run_local_ranks(kRanks, [&](tessera::Communicator& communicator) {
    const int rank = communicator.rank();
    const std::int64_t tokens = layout.tokens(rank);
    Floats local_q;
    Floats local_k;
    Floats local_v;
    Floats local_out;
    tessera::ForwardTensors tensors;
    for (const auto& [whole, local, view] :
         {std::tuple{&q, &local_q, &tensors.q}, {&k, &local_k, &tensors.k}, {&v, &local_v, &tensors.v}}) {
      const tessera::TensorView part = tokens_of(*local, tokens);
      shard(layout, rank, tessera::TensorView(whole->data(), tessera::DType::float32, {1, kTokens, kHeads, kDim}),
            part);
      *view = part;
    }
    tensors.out = tokens_of(local_out, tokens);

    tessera::DistributedOptions options;
    options.plan.threads = 1;
    auto plan = tessera::DistributedPlan::make(problem, tessera::Pass::forward, communicator, options);
    const tessera::RunReport report = plan.run(tensors);

    unshard(layout, rank, tensors.out, whole_out);
    const std::lock_guard lock(printing);
    std::printf("rank %d: %lld tokens, %lld bytes sent\n", rank, static_cast<long long>(tokens),
                static_cast<long long>(report.traffic.bytes_sent));
  });

  float difference = 0.0F;
  for (std::size_t n = 0; n < expected.size(); ++n) {
    difference = std::max(difference, std::abs(expected[n] - gathered[n]));
  }
  std::printf("%d ranks against one: O differs by %.1e\n", kRanks, static_cast<double>(difference));
  return difference < 1e-5F ? 0 : 1;
}
