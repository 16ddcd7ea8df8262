// Conversions between float32 and the 16-bit types, seen from outside: a query that sees one key returns its value.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/targets.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using test::Target;

constexpr std::int64_t kDim = 256;

// By definition: sign, exponent with a bias, fraction.
double widen(std::uint16_t bits, int fraction_bits) {
  const int exponent_bits = 15 - fraction_bits;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int implicit = exponent == 0 ? 0 : 1 << fraction_bits;
  return sign * std::ldexp(implicit + fraction, std::max(exponent, 1) - bias - fraction_bits);
}

// Whether `actual` is `expected`. The bfloat16 dot product of AVX-512 takes subnormal numbers as zero.
bool same(double actual, double expected) {
  const bool flushed = actual == 0.0 && std::abs(expected) < 0x1p-126;
  return actual == expected || flushed || (std::isnan(actual) && std::isnan(expected));
}

int fraction_bits_of(DType dtype) { return dtype == DType::bfloat16 ? 7 : 10; }

struct Setting {
  DType dtype;
  DType output_dtype;
};

// Attention over one key with the given value is the value itself, in the output dtype.
template <class In, class Out>
std::vector<Out> through_one_key(const std::vector<In>& values, const Setting& setting, const Target& target) {
  const auto rows = static_cast<std::int64_t>(values.size()) / kDim;
  Problem problem;
  problem.dtype = setting.dtype;
  problem.output_dtype = setting.output_dtype;
  problem.batch = rows;
  problem.seq_q = problem.seq_k = 1;
  problem.dim_qk = 1;
  problem.dim_v = kDim;
  const std::vector<In> zeros(static_cast<std::size_t>(rows), In{});
  std::vector<Out> out(values.size());
  ForwardTensors tensors;
  tensors.q = tensors.k = ConstTensorView(zeros.data(), setting.dtype, {rows, 1, 1, 1});
  tensors.v = ConstTensorView(values.data(), setting.dtype, {rows, 1, 1, kDim});
  tensors.out = TensorView(out.data(), setting.output_dtype, {rows, 1, 1, kDim});
  test::make_plan(problem, Pass::forward, target).run(tensors);
  return out;
}

class Half : public testing::TestWithParam<DType> {};

std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> patterns;
  patterns.reserve(65536);
  for (int bits = 0; bits < 65536; ++bits) patterns.push_back(static_cast<std::uint16_t>(bits));
  return patterns;
}

TEST_P(Half, EveryPatternIsWidenedExactly) {
  const std::vector<std::uint16_t> patterns = all_patterns();
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    const auto out = through_one_key<std::uint16_t, float>(patterns, {GetParam(), DType::float32}, target);
    for (std::size_t n = 0; n < patterns.size(); ++n) {
      const double expected = widen(patterns[n], fraction_bits_of(GetParam()));
      ASSERT_TRUE(same(out[n], expected)) << "bits " << n << ": " << out[n];
    }
  }
}

TEST_P(Half, EveryNumberIsStoredBackUnchanged) {
  const std::vector<std::uint16_t> patterns = all_patterns();
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    const auto out = through_one_key<std::uint16_t, std::uint16_t>(patterns, {GetParam(), GetParam()}, target);
    for (std::size_t n = 0; n < patterns.size(); ++n) {
      const double expected = widen(patterns[n], fraction_bits_of(GetParam()));
      const double actual = widen(out[n], fraction_bits_of(GetParam()));
      ASSERT_TRUE(same(actual, expected)) << "bits " << n << ": " << out[n];
    }
  }
}

// The mean of two neighbours is a tie: it goes to the one with an even last bit.
TEST_P(Half, TiesRoundToEven) {
  const int fraction_bits = fraction_bits_of(GetParam());
  // Normal numbers whose sum is far from overflow in float32.
  std::vector<std::uint16_t> low;
  for (int bits = 1 << fraction_bits; widen(static_cast<std::uint16_t>(bits + 1), fraction_bits) < 1e30; ++bits) {
    low.push_back(static_cast<std::uint16_t>(bits));
  }
  low.resize(low.size() / kDim * kDim);
  const auto batch = static_cast<std::int64_t>(low.size()) / kDim;
  Problem problem;
  problem.dtype = GetParam();
  problem.batch = batch;
  problem.seq_q = 1;
  problem.seq_k = 2;
  problem.dim_qk = 1;
  problem.dim_v = kDim;
  const std::vector<std::uint16_t> zeros(static_cast<std::size_t>(2 * batch));
  std::vector<std::uint16_t> values(2 * low.size());
  for (std::size_t n = 0; n < low.size(); ++n) {
    const std::size_t row = n / kDim;
    values[2 * row * kDim + n % kDim] = low[n];
    values[(2 * row + 1) * kDim + n % kDim] = static_cast<std::uint16_t>(low[n] + 1);
  }
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    std::vector<std::uint16_t> out(low.size());
    ForwardTensors tensors;
    tensors.q = ConstTensorView(zeros.data(), problem.dtype, {batch, 1, 1, 1});
    tensors.k = ConstTensorView(zeros.data(), problem.dtype, {batch, 2, 1, 1});
    tensors.v = ConstTensorView(values.data(), problem.dtype, {batch, 2, 1, kDim});
    tensors.out = TensorView(out.data(), problem.dtype, {batch, 1, 1, kDim});
    test::make_plan(problem, Pass::forward, target).run(tensors);
    for (std::size_t n = 0; n < low.size(); ++n) ASSERT_EQ(out[n], low[n] + (low[n] & 1)) << "bits " << low[n];
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, Half, testing::Values(DType::bfloat16, DType::float16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace tessera
