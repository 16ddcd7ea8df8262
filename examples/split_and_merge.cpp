// Attention over some of the keys at a time, merged into the attention over all of them.
//
// (O, LSE) of a set of keys is all that is needed to join it with another set. That is how a cache of keys is read in
// pieces, how devices share a sequence, and how a common prefix is computed once for many requests. The merge is exact.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "tessera/tessera.h"

namespace {

constexpr std::int64_t kQueries = 100;
constexpr std::int64_t kKeys = 500;
constexpr std::int64_t kHeads = 4;
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

// Rows [begin, end) of a tensor [1, kKeys, kHeads, kDim], without a copy.
tessera::TensorView key_rows(Floats& values, std::int64_t begin, std::int64_t end) {
  return {values.data() + begin * kHeads * kDim, tessera::DType::float32, {1, end - begin, kHeads, kDim}};
}

// O and LSE of all queries, and the views of them.
struct Result {
  Floats out = Floats(static_cast<std::size_t>(kQueries * kHeads * kDim));
  Floats lse = Floats(static_cast<std::size_t>(kQueries * kHeads));
  tessera::Partial partial() {
    return {{out.data(), tessera::DType::float32, {1, kQueries, kHeads, kDim}},
            {lse.data(), tessera::DType::float32, {1, kHeads, kQueries}}};
  }
};

float largest_difference(const Floats& a, const Floats& b) {
  float difference = 0.0F;
  for (std::size_t n = 0; n < a.size(); ++n) {
    difference = std::max(difference, std::abs(a[n] - b[n]));
  }
  return difference;
}

}  // namespace

int main() {
  Floats q_values = random_floats(kQueries * kHeads * kDim, 1);
  Floats k = random_floats(kKeys * kHeads * kDim, 2);
  Floats v = random_floats(kKeys * kHeads * kDim, 3);
  const tessera::TensorView q(q_values.data(), tessera::DType::float32, {1, kQueries, kHeads, kDim});

  // Attention of the last kQueries positions over keys [begin, end).
  const auto attend = [&](std::int64_t begin, std::int64_t end, Result& result) {
    // Query i stands at position kKeys - kQueries + i of the whole sequence: `begin` less among these keys.
    const auto alignment = tessera::Alignment::at(kKeys - kQueries - begin);
    const tessera::Partial partial = result.partial();
    tessera::attention_forward(q, key_rows(k, begin, end), key_rows(v, begin, end), partial.out, partial.lse,
                               {.mask = tessera::Mask::causal(alignment)});
  };

  Result whole;
  attend(0, kKeys, whole);

  Result merged;
  attend(0, 150, merged);
  for (const auto& [begin, end] : {std::pair{150, 420}, std::pair{420, 500}}) {
    Result part;
    attend(begin, end, part);
    const auto a = merged.partial();
    const auto b = part.partial();
    tessera::merge({a.out, a.lse}, {b.out, b.lse}, a);  // the result may be written over the first operand
  }

  const float out_difference = largest_difference(whole.out, merged.out);
  const float lse_difference = largest_difference(whole.lse, merged.lse);
  std::printf("three parts merged against one piece: O differs by %.1e, LSE by %.1e\n",
              static_cast<double>(out_difference), static_cast<double>(lse_difference));
  return out_difference < 1e-5F && lse_difference < 1e-5F ? 0 : 1;
}
