#include "cpu/merge.h"

#include <cmath>
#include <limits>

#include "core/half.h"
#include "cpu/threads.h"

namespace tessera::internal {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Weight of b in the union, and the union's LSE.
struct Weight {
  float of_b = 0;
  float lse = -kInfinity;
};

Weight weigh(float lse_a, float lse_b) {
  if (lse_b == -kInfinity) {
    return {0, lse_a};
  }
  if (lse_a == -kInfinity) {
    return {1, lse_b};
  }
  const float difference = lse_b - lse_a;
  const float weight = 1 / (1 + std::exp(-difference));
  return {weight,
          difference > 0 ? lse_b + std::log1p(std::exp(-difference)) : lse_a + std::log1p(std::exp(difference))};
}

// The difference of an infinity and a number, times a weight, would take the infinity away again.
float mix(float a, float b, float weight) {
  if (weight == 0 || weight == 1) {
    return weight == 0 ? a : b;
  }
  return std::isinf(a) || std::isinf(b) ? (1 - weight) * a + weight * b : a - weight * (a - b);
}

// Index arithmetic of [batch, seq, heads, dim] and of ragged [total, heads, dim], which is a batch of one.
struct Axes {
  explicit Axes(int rank) : first(rank == 4 ? 1U : 0U) {}
  std::size_t first;
  std::int64_t row(const auto& out, std::int64_t batch, std::int64_t token, std::int64_t head) const {
    return (first == 1 ? batch * out.strides[0] : 0) + token * out.strides[first] + head * out.strides[first + 1];
  }
  std::int64_t line(const auto& lse, std::int64_t batch, std::int64_t token, std::int64_t head) const {
    return (first == 1 ? batch * lse.strides[0] : 0) + head * lse.strides[first] + token * lse.strides[first + 1];
  }
};

}  // namespace

void cpu_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result, int threads) {
  const int team = threads > 0 ? threads : default_threads();
  const Axes axes(a.out.rank);
  const std::int64_t batch_size = axes.first == 1 ? a.out.shape[0] : 1;
  const std::int64_t tokens = a.out.shape[axes.first];
  const std::int64_t heads = a.out.shape[axes.first + 1];
  const std::int64_t dim = a.out.shape[axes.first + 2];
#pragma omp parallel for collapse(2) schedule(static) num_threads(team) if (team > 1)
  for (std::int64_t batch = 0; batch < batch_size; ++batch) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::int64_t head = 0; head < heads; ++head) {
        const auto lse_of = [&](const ConstPartial& part) {
          return static_cast<const float*>(part.lse.data)[axes.line(part.lse, batch, token, head)];
        };
        const Weight weight = weigh(lse_of(a), lse_of(b));
        static_cast<float*>(result.lse.data)[axes.line(result.lse, batch, token, head)] = weight.lse;
        const std::int64_t row_a = axes.row(a.out, batch, token, head);
        const std::int64_t row_b = axes.row(b.out, batch, token, head);
        const std::int64_t row_result = axes.row(result.out, batch, token, head);
        for (std::int64_t column = 0; column < dim; ++column) {
          const auto of_a = static_cast<float>(load_element(a.out.data, a.out.dtype, row_a + column));
          const auto of_b = static_cast<float>(load_element(b.out.data, b.out.dtype, row_b + column));
          const float merged = mix(of_a, of_b, weight.of_b);
          store_element(result.out.data, result.out.dtype, row_result + column, merged);
        }
      }
    }
  }
}

}  // namespace tessera::internal
