// Functions of a program's own: of the scores and of which pairs attend.
//
// Here: a penalty that grows with the distance of a pair and that the score itself opens and closes, over a window with holes.
// Both are compiled with this program. The same function as source text, which a program may get at run time, is compiled by the
// C++ compiler of the machine, if it has one; the results are the same, forward and backward, and the derivative is derived.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "tessera/tessera.h"

TESSERA_SCORE_FUNCTION(gated_distance, const float distance = static_cast<float>(abs(i.query - i.key));
                       const T gate = (T(1) + tanh(s)) / 2; return s - params[0] * gate * log(1.0F + distance);)

TESSERA_MASK_FUNCTION(dilated, const int distance = i.query - i.key;
                      return distance >= 0 && distance < 256 && distance % 4 == 0;)

namespace {

constexpr const char* kSource = R"(
template <class T>
T score(T s, tessera::Index i, const float* params) {
  const float distance = static_cast<float>(abs(i.query - i.key));
  const T gate = (T(1) + tanh(s)) / 2;
  return s - params[0] * gate * log(1.0F + distance);
}
)";

constexpr std::int64_t kTokens = 1000;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 32;

using Floats = std::vector<float>;

Floats random_floats(unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(kTokens * kHeads * kDim));
  std::generate(values.begin(), values.end(), [&] { return normal(generator); });
  return values;
}

tessera::TensorView tokens(Floats& values) {
  return {values.data(), tessera::DType::float32, {1, kTokens, kHeads, kDim}};
}

struct Results {
  Floats out, dq;
};

// O, and dQ for a gradient of ones.
Results compute(const tessera::Problem& problem, Floats& q, Floats& k, Floats& v) {
  Results results{Floats(q.size()), Floats(q.size())};
  Floats lse(static_cast<std::size_t>(kHeads * kTokens));
  const tessera::TensorView lines(lse.data(), tessera::DType::float32, {1, kHeads, kTokens});
  tessera::ForwardTensors forward;
  forward.q = tokens(q);
  forward.k = tokens(k);
  forward.v = tokens(v);
  forward.out = tokens(results.out);
  forward.lse = lines;
  tessera::attention_forward(problem, forward);

  Floats dout(q.size(), 1.0F);
  Floats dk(q.size());
  Floats dv(q.size());
  tessera::BackwardTensors backward;
  backward.q = tokens(q);
  backward.k = tokens(k);
  backward.v = tokens(v);
  backward.out = tokens(results.out);
  backward.lse = lines;
  backward.dout = tokens(dout);
  backward.dq = tokens(results.dq);
  backward.dk = tokens(dk);
  backward.dv = tokens(dv);
  tessera::attention_backward(problem, backward);
  return results;
}

float distance(const Floats& a, const Floats& b) {
  float largest = 0.0F;
  for (std::size_t n = 0; n < a.size(); ++n) {
    largest = std::max(largest, std::abs(a[n] - b[n]));
  }
  return largest;
}

}  // namespace

int main() {
  Floats q = random_floats(1);
  Floats k = random_floats(2);
  Floats v = random_floats(3);
  tessera::Problem problem = tessera::problem_of(tokens(q), tokens(k), tokens(v));
  problem.score_function = gated_distance({0.5F});
  problem.mask_function = dilated();
  std::printf("%s\n", tessera::Plan::make(problem, tessera::Pass::forward).explain().c_str());
  const Results compiled_before = compute(problem, q, k, v);

  problem.score_function = tessera::ScoreFunction(kSource, {0.5F}, "gated_distance");
  try {
    const Results compiled_now = compute(problem, q, k, v);
    const float difference =
        std::max(distance(compiled_before.out, compiled_now.out), distance(compiled_before.dq, compiled_now.dq));
    std::printf("largest difference between the two compilations: %.1e\n", static_cast<double>(difference));
    return difference < 1e-5F ? 0 : 1;
  } catch (const tessera::Error& error) {
    std::printf("the source is not compiled here: %s\n", error.what());
    return error.code() == tessera::ErrorCode::unsupported ? 0 : 1;
  }
}
