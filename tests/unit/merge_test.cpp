// merge() against its definition on hand-made partials; whole problems are split and merged in tests/property.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/expect_error.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using test::expect_invalid;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// One row of two numbers with its LSE.
struct Row {
  std::array<float, 2> out;
  float lse;

  ConstPartial view() const {
    return {ConstTensorView(out.data(), DType::float32, {1, 1, 1, 2}),
            ConstTensorView(&lse, DType::float32, {1, 1, 1})};
  }
};

Row merge_rows(const Row& a, const Row& b) {
  Row result{{kNaN, kNaN}, kNaN};
  merge(a.view(), b.view(),
        {TensorView(result.out.data(), DType::float32, {1, 1, 1, 2}),
         TensorView(&result.lse, DType::float32, {1, 1, 1})});
  return result;
}

TEST(Merge, WeighsByTheSumsOfExponentials) {
  const Row merged = merge_rows({{1.0F, -4.0F}, std::log(3.0F)}, {{5.0F, 8.0F}, std::log(1.0F)});
  EXPECT_NEAR(merged.out[0], 0.75 * 1 + 0.25 * 5, 1e-6);
  EXPECT_NEAR(merged.out[1], 0.75 * -4 + 0.25 * 8, 1e-6);
  EXPECT_NEAR(merged.lse, std::log(4.0), 1e-6);
}

TEST(Merge, IsSymmetric) {
  const Row a{{1.5F, -2.0F}, 0.25F};
  const Row b{{-7.0F, 3.0F}, 4.5F};
  const Row ab = merge_rows(a, b);
  const Row ba = merge_rows(b, a);
  EXPECT_NEAR(ab.out[0], ba.out[0], 1e-6);
  EXPECT_NEAR(ab.out[1], ba.out[1], 1e-6);
  EXPECT_NEAR(ab.lse, ba.lse, 1e-6);
}

TEST(Merge, AnEmptyPartChangesNothing) {
  const Row row{{3.0F, 4.0F}, -2.0F};
  const Row empty{{0.0F, 0.0F}, -kInf};
  for (const Row& merged : {merge_rows(row, empty), merge_rows(empty, row)}) {
    EXPECT_EQ(merged.out, row.out);
    EXPECT_EQ(merged.lse, row.lse);
  }
}

TEST(Merge, InfinitiesStay) {
  const Row merged = merge_rows({{kInf, 1.0F}, 0.5F}, {{2.0F, -kInf}, 0.25F});
  EXPECT_EQ(merged.out, (std::array<float, 2>{kInf, -kInf}));
  EXPECT_TRUE(std::isnan(merge_rows({{kInf, 1.0F}, 0.5F}, {{-kInf, 1.0F}, 0.25F}).out[0]));
}

TEST(Merge, TwoEmptyPartsAreEmpty) {
  const Row empty{{0.0F, 0.0F}, -kInf};
  const Row merged = merge_rows(empty, empty);
  EXPECT_EQ(merged.out, (std::array<float, 2>{0.0F, 0.0F}));
  EXPECT_EQ(merged.lse, -kInf);
}

TEST(Merge, FarApartLogarithmsDoNotOverflow) {
  const Row high{{1.0F, 2.0F}, 3e38F};
  const Row low{{9.0F, 9.0F}, -3e38F};
  for (const Row& merged : {merge_rows(high, low), merge_rows(low, high)}) {
    EXPECT_EQ(merged.out, high.out);
    EXPECT_EQ(merged.lse, high.lse);
  }
  const Row near = merge_rows({{1.0F, 0.0F}, 1000.0F}, {{0.0F, 1.0F}, 1000.0F});
  EXPECT_NEAR(near.out[0], 0.5, 1e-6);
  EXPECT_NEAR(near.lse, 1000 + std::log(2.0), 1e-4);
}

TEST(Merge, NaNStaysInItsRow) {
  std::vector<float> out_a = {1, 2, 3, 4};
  std::vector<float> lse_a = {0, kNaN};
  const std::vector<float> out_b = {5, 6, 7, 8};
  const std::vector<float> lse_b = {0, 0};
  const Partial result{TensorView(out_a.data(), DType::float32, {2, 1, 2}),
                       TensorView(lse_a.data(), DType::float32, {1, 2})};
  merge(
      {result.out, result.lse},
      {ConstTensorView(out_b.data(), DType::float32, {2, 1, 2}), ConstTensorView(lse_b.data(), DType::float32, {1, 2})},
      result);
  EXPECT_NEAR(out_a[0], 3, 1e-6);
  EXPECT_NEAR(out_a[1], 4, 1e-6);
  EXPECT_NEAR(lse_a[0], std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isnan(out_a[2]) && std::isnan(out_a[3]) && std::isnan(lse_a[1]));
}

// Every layout: the batch one, transposed by strides, into `a` itself.
TEST(Merge, InPlaceAndStrided) {
  constexpr std::int64_t kBatch = 2, kSeq = 3, kHeads = 4, kDim = 5;
  const std::array<std::int64_t, 4> shape = {kBatch, kSeq, kHeads, kDim};
  const std::array<std::int64_t, 4> heads_first = {kHeads * kSeq * kDim, kDim, kSeq * kDim, 1};
  const std::array<std::int64_t, 3> lse_shape = {kBatch, kHeads, kSeq};
  const std::array<std::int64_t, 3> seq_first = {kSeq * kHeads, 1, kHeads};
  std::vector<float> out_a(120), lse_a(24), out_b(120), lse_b(24);
  for (std::size_t n = 0; n < out_a.size(); ++n) {
    out_a[n] = 0.1F * static_cast<float>(n % 17);
    out_b[n] = 0.2F * static_cast<float>(n % 13) - 1;
  }
  for (std::size_t n = 0; n < lse_a.size(); ++n) {
    lse_a[n] = 0.3F * static_cast<float>(n % 7);
    lse_b[n] = 0.4F * static_cast<float>(n % 5);
  }
  const std::vector<float> out_before = out_a;
  const std::vector<float> lse_before = lse_a;
  const Partial a{TensorView(out_a.data(), DType::float32, shape, heads_first),
                  TensorView(lse_a.data(), DType::float32, lse_shape, seq_first)};
  merge({a.out, a.lse},
        {ConstTensorView(out_b.data(), DType::float32, {kBatch, kSeq, kHeads, kDim}),
         ConstTensorView(lse_b.data(), DType::float32, {kBatch, kHeads, kSeq})},
        a);
  for (std::int64_t row = 0; row < kBatch * kSeq * kHeads; ++row) {
    const std::int64_t b = row / (kSeq * kHeads), i = row / kHeads % kSeq, h = row % kHeads;
    const auto la = static_cast<std::size_t>(b * kSeq * kHeads + h + i * kHeads);
    const auto lb = static_cast<std::size_t>((b * kHeads + h) * kSeq + i);
    const double wa = std::exp(static_cast<double>(lse_before[la]));
    const double wb = std::exp(static_cast<double>(lse_b[lb]));
    EXPECT_NEAR(lse_a[la], std::log(wa + wb), 1e-5);
    for (std::int64_t d = 0; d < kDim; ++d) {
      const auto oa = static_cast<std::size_t>(((b * kHeads + h) * kSeq + i) * kDim + d);
      const auto ob = static_cast<std::size_t>(((b * kSeq + i) * kHeads + h) * kDim + d);
      EXPECT_NEAR(out_a[oa], (wa * out_before[oa] + wb * out_b[ob]) / (wa + wb), 1e-5);
    }
  }
}

TEST(Merge, SixteenBitPartsIntoFloat) {
  const std::array<std::uint16_t, 2> one_two_bf16 = {0x3F80, 0x4000};
  const std::array<std::uint16_t, 2> three_four_f16 = {0x4200, 0x4400};
  const float lse = 1.0F;
  Row result{{kNaN, kNaN}, kNaN};
  merge({ConstTensorView(one_two_bf16.data(), DType::bfloat16, {1, 1, 1, 2}),
         ConstTensorView(&lse, DType::float32, {1, 1, 1})},
        {ConstTensorView(three_four_f16.data(), DType::float16, {1, 1, 1, 2}),
         ConstTensorView(&lse, DType::float32, {1, 1, 1})},
        {TensorView(result.out.data(), DType::float32, {1, 1, 1, 2}),
         TensorView(&result.lse, DType::float32, {1, 1, 1})});
  EXPECT_NEAR(result.out[0], 2, 1e-6);
  EXPECT_NEAR(result.out[1], 3, 1e-6);
}

TEST(Merge, EmptyTensors) {
  const ConstPartial empty{ConstTensorView(nullptr, DType::float32, {0, 3, 2, 4}),
                           ConstTensorView(nullptr, DType::float32, {0, 2, 3})};
  EXPECT_NO_THROW(
      merge(empty, empty,
            {TensorView(nullptr, DType::float32, {0, 3, 2, 4}), TensorView(nullptr, DType::float32, {0, 2, 3})}));
}

TEST(Merge, RefusesWhatDoesNotFit) {
  std::vector<float> data(64);
  const auto view = [&](std::initializer_list<std::int64_t> shape) {
    return TensorView(data.data(), DType::float32, shape);
  };
  const Partial good{view({1, 2, 3, 4}), view({1, 3, 2})};
  const ConstPartial in{good.out, good.lse};
  expect_invalid({"b.out", "[1, 3, 3, 4]", "[1, 2, 3, 4]"},
                 [&] { merge(in, {view({1, 3, 3, 4}), view({1, 3, 3})}, good); });
  expect_invalid({"b.lse", "[1, 2, 3]", "[1, 3, 2]"}, [&] { merge(in, {view({1, 2, 3, 4}), view({1, 2, 3})}, good); });
  expect_invalid({"result.out"}, [&] { merge(in, in, {view({1, 2, 3, 5}), good.lse}); });
  expect_invalid({"result.lse", "absent"}, [&] { merge(in, in, {good.out, {}}); });
  expect_invalid({"a.out"}, [&] { merge({view({6, 4}), view({6})}, in, good); });
  expect_invalid({"a.lse dtype", "bfloat16", "float32"},
                 [&] { merge({good.out, TensorView(data.data(), DType::bfloat16, {1, 3, 2})}, in, good); });
}

}  // namespace
}  // namespace tessera
