#include "cpu/merge.h"

#include <algorithm>
#include <array>
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
  const float ratio = std::exp(-std::abs(lse_b - lse_a));
  return {(lse_b > lse_a ? 1 : ratio) / (1 + ratio), std::max(lse_a, lse_b) + std::log1p(ratio)};
}

// A part of a row, so that the loop over it has neither branches nor aliases and the compiler makes vectors of it.
constexpr std::int64_t kChunk = 64;
using Chunk = std::array<float, kChunk>;

const float* load(const ConstTensorView& view, std::int64_t at, std::int64_t count, Chunk& memory) {
  if (view.dtype == DType::float32) {
    return static_cast<const float*>(view.data) + at;
  }
  for (std::int64_t n = 0; n < count; ++n) {
    memory[static_cast<std::size_t>(n)] = static_cast<float>(load_element(view.data, view.dtype, at + n));
  }
  return memory.data();
}

void store(const Chunk& values, std::int64_t count, const TensorView& view, std::int64_t at) {
  if (view.dtype == DType::float32) {
    std::copy_n(values.begin(), count, static_cast<float*>(view.data) + at);
    return;
  }
  for (std::int64_t n = 0; n < count; ++n) {
    store_element(view.data, view.dtype, at + n, values[static_cast<std::size_t>(n)]);
  }
}

// The difference of an infinity and a number, times a weight, would take the infinity away again.
void mix(const float* a, const float* b, float weight, std::int64_t count, Chunk& merged) {
  if (weight == 0 || weight == 1) {
    std::copy_n(weight == 0 ? a : b, count, merged.begin());
    return;
  }
  for (std::int64_t n = 0; n < count; ++n) {
    const bool infinite = std::max(std::abs(a[n]), std::abs(b[n])) == kInfinity;
    const float of_numbers = a[n] - weight * (a[n] - b[n]);
    const float of_infinities = (1 - weight) * a[n] + weight * b[n];
    merged[static_cast<std::size_t>(n)] = infinite ? of_infinities : of_numbers;
  }
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
        for (std::int64_t column = 0; column < dim; column += kChunk) {
          const std::int64_t count = std::min(kChunk, dim - column);
          Chunk of_a;
          Chunk of_b;
          Chunk merged;
          mix(load(a.out, row_a + column, count, of_a), load(b.out, row_b + column, count, of_b), weight.of_b, count,
              merged);
          store(merged, count, result.out, row_result + column);
        }
      }
    }
  }
}

}  // namespace tessera::internal
