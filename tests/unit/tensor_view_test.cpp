#include "tessera/tensor_view.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/expect_error.h"
#include "tessera/error.h"

namespace tessera {
namespace {

using test::expect_invalid;

TEST(TensorView, DefaultIsAbsent) {
  const TensorView view;
  EXPECT_TRUE(view.absent());
  EXPECT_EQ(view.data, nullptr);
}

TEST(TensorView, ContiguousStridesAreRowMajor) {
  std::vector<float> data(2 * 3 * 4 * 5);
  const TensorView view(data.data(), DType::float32, {2, 3, 4, 5});
  EXPECT_FALSE(view.absent());
  EXPECT_EQ(view.rank, 4);
  EXPECT_EQ(view.elements(), 120);
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 4>{2, 3, 4, 5}));
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 4>{60, 20, 5, 1}));
}

TEST(TensorView, ExplicitStrides) {
  std::vector<float> data(64);
  const std::array<std::int64_t, 2> shape = {3, 4};
  const std::array<std::int64_t, 2> strides = {16, 1};
  const TensorView view(data.data(), DType::float32, shape, strides);
  EXPECT_FALSE(view.contiguous());
  EXPECT_EQ(view.elements(), 12);
  EXPECT_EQ(view.strides[0], 16);
}

TEST(TensorView, StridesOfUnitExtentsDoNotMatterToContiguity) {
  std::vector<float> data(8);
  const std::array<std::int64_t, 3> shape = {1, 2, 4};
  const std::array<std::int64_t, 3> strides = {999, 4, 1};
  EXPECT_TRUE(TensorView(data.data(), DType::float32, shape, strides).contiguous());
}

TEST(TensorView, EmptyViews) {
  const TensorView view(nullptr, DType::float32, {2, 0, 4, 5});
  EXPECT_FALSE(view.absent());
  EXPECT_EQ(view.elements(), 0);
}

TEST(TensorView, ElementsBeyondThirtyTwoBits) {
  const std::int64_t rows = std::int64_t{1} << 33;
  EXPECT_EQ(TensorView(nullptr, DType::float16, {rows, 2, 2}).elements(), rows * 4);
}

TEST(TensorView, WritableConvertsToReadOnly) {
  std::vector<float> data(6);
  const TensorView view(data.data(), DType::float32, {2, 3}, Device{DeviceKind::cuda, 1});
  const ConstTensorView read_only = view;
  EXPECT_EQ(read_only.data, data.data());
  EXPECT_EQ(read_only.shape, view.shape);
  EXPECT_EQ(read_only.strides, view.strides);
  EXPECT_EQ(read_only.rank, 2);
  EXPECT_EQ(read_only.device, view.device);
  static_assert(!std::is_convertible_v<ConstTensorView, TensorView>);
}

TEST(TensorView, DescribeShowsDtypeShapeAndStrides) {
  std::vector<float> data(12);
  const std::array<std::int64_t, 2> shape = {3, 4};
  const std::array<std::int64_t, 2> strides = {16, 1};
  const std::string text = TensorView(data.data(), DType::float32, shape, strides).describe();
  EXPECT_NE(text.find("float32[3, 4]"), std::string::npos) << text;
  EXPECT_NE(text.find("(16, 1)"), std::string::npos) << text;
}

TEST(TensorView, RefusesTooManyOrNegativeExtents) {
  expect_invalid({"5", "4"}, [] { TensorView(nullptr, DType::float32, {1, 1, 1, 1, 1}); });
  expect_invalid({"-2"}, [] { TensorView(nullptr, DType::float32, {3, -2}); });
}

TEST(TensorView, RefusesStridesOfAnotherRank) {
  const std::array<std::int64_t, 2> shape = {3, 4};
  const std::array<std::int64_t, 3> strides = {12, 4, 1};
  expect_invalid({"3", "2"}, [&] { TensorView(nullptr, DType::float32, shape, strides); });
}

TEST(TensorView, RefusesElementCountsThatOverflow) {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max() / 2;
  expect_invalid({}, [&] { static_cast<void>(TensorView(nullptr, DType::float32, {huge, 3}).elements()); });
}

}  // namespace
}  // namespace tessera
