// Decide once, run many times.
//
// A Plan holds every decision about one Problem: which implementation, its tiles, the bytes of workspace. Running it
// allocates nothing. Programs that see the same shapes again and again, such as the layers of a model, keep the Plan and
// one workspace.
#include <cstddef>
#include <cstdio>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <vector>

#include "tessera/tessera.h"

namespace {

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kTokens = 200;
constexpr std::int64_t kQueryHeads = 8;
constexpr std::int64_t kKeyHeads = 2;  // grouped-query attention: four query heads share a key head
constexpr std::int64_t kDim = 64;

using Floats = std::vector<float>;

Floats random_floats(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

tessera::TensorView tokens(Floats& values, std::int64_t heads) {
  return {values.data(), tessera::DType::float32, {kBatch, kTokens, heads, kDim}};
}

// A workspace starts at a multiple of 64 bytes.
struct AlignedDelete {
  void operator()(std::byte* bytes) const { ::operator delete(bytes, std::align_val_t{64}); }
};

}  // namespace

int main() {
  tessera::Problem problem;
  problem.batch = kBatch;
  problem.seq_q = kTokens;
  problem.seq_k = kTokens;
  problem.heads_q = kQueryHeads;
  problem.heads_kv = kKeyHeads;
  problem.dim_qk = kDim;
  problem.dim_v = kDim;
  problem.mask = tessera::Mask::causal();

  const tessera::Plan plan = tessera::Plan::make(problem, tessera::Pass::forward);
  std::printf("%s\n", plan.explain().c_str());

  const auto bytes = static_cast<std::size_t>(plan.workspace_bytes());
  const std::unique_ptr<std::byte, AlignedDelete> memory(
      static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
  const std::span<std::byte> workspace(memory.get(), bytes);

  // Four layers, one plan, one workspace.
  for (unsigned layer = 0; layer < 4; ++layer) {
    Floats q = random_floats(kBatch * kTokens * kQueryHeads * kDim, 3 * layer);
    Floats k = random_floats(kBatch * kTokens * kKeyHeads * kDim, 3 * layer + 1);
    Floats v = random_floats(kBatch * kTokens * kKeyHeads * kDim, 3 * layer + 2);
    Floats out(q.size());
    tessera::ForwardTensors tensors;
    tensors.q = tokens(q, kQueryHeads);
    tensors.k = tokens(k, kKeyHeads);
    tensors.v = tokens(v, kKeyHeads);
    tensors.out = tokens(out, kQueryHeads);
    plan.run(tensors, workspace);

    // The form that plans anew each time gives the same bits.
    Floats again(q.size());
    tessera::attention_forward(tokens(q, kQueryHeads), tokens(k, kKeyHeads), tokens(v, kKeyHeads),
                               tokens(again, kQueryHeads), {}, {.mask = problem.mask});
    if (out != again) {
      std::printf("layer %u: the kept plan and a new one disagree\n", layer);
      return 1;
    }
    std::printf("layer %u: out[0] = %.6f\n", layer, static_cast<double>(out[0]));
  }
  return 0;
}
