// Masks are built from parts, and `&` joins them.
//
// Here: three documents packed into one sequence, in which each token sees itself and the 32 tokens before it in its own
// document. Tiles in which nothing attends are never visited, so this costs a fraction of the full square. A mask with no
// such structure goes in as an additive bias of 0 and -infinity; this program does it both ways and compares.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "tessera/tessera.h"

namespace {

constexpr std::int64_t kTokens = 600;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 32;
constexpr std::int64_t kWindow = 32;

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

tessera::TensorView tokens(Floats& values) {
  return {values.data(), tessera::DType::float32, {1, kTokens, kHeads, kDim}};
}

// Documents of 100, 350 and 150 tokens.
std::vector<std::int32_t> documents() {
  std::vector<std::int32_t> numbers(kTokens, 2);
  std::fill_n(numbers.begin(), 100, 0);
  std::fill_n(numbers.begin() + 100, 350, 1);
  return numbers;
}

}  // namespace

int main() {
  Floats q = random_floats(1);
  Floats k = random_floats(2);
  Floats v = random_floats(3);
  Floats masked(q.size());
  Floats blocked(q.size());

  const std::vector<std::int32_t> document = documents();
  tessera::Problem problem = tessera::problem_of(tokens(q), tokens(k), tokens(v));
  problem.mask = tessera::Mask::window(kWindow, 0) & tessera::Mask::segments({document, document});
  std::printf("mask: %s\n", problem.mask.describe().c_str());
  std::printf("%s\n", tessera::Plan::make(problem, tessera::Pass::forward).explain().c_str());
  tessera::ForwardTensors tensors;
  tensors.q = tokens(q);
  tensors.k = tokens(k);
  tensors.v = tokens(v);
  tensors.out = tokens(masked);
  tessera::attention_forward(problem, tensors);

  // The same set of pairs, one boolean for each.
  std::vector<std::uint8_t> attends(static_cast<std::size_t>(kTokens * kTokens));
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t j = 0; j < kTokens; ++j) {
      const bool same_document = document[static_cast<std::size_t>(i)] == document[static_cast<std::size_t>(j)];
      attends[static_cast<std::size_t>(i * kTokens + j)] = same_document && j <= i && i - j <= kWindow ? 1 : 0;
    }
  }
  const auto blocks = tessera::BlockMask::from_dense({kTokens, kTokens, 32, 32}, attends);
  std::printf("as blocks:\n%s\n", blocks.draw().c_str());
  problem.mask = tessera::Mask::blocks(blocks);
  tensors.out = tokens(blocked);
  tessera::attention_forward(problem, tensors);

  float difference = 0.0F;
  for (std::size_t n = 0; n < masked.size(); ++n) {
    difference = std::max(difference, std::abs(masked[n] - blocked[n]));
  }
  std::printf("largest difference between the two ways: %.1e\n", static_cast<double>(difference));
  return difference < 1e-5F ? 0 : 1;
}
