#include "tessera/dlpack.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "support/expect_error.h"

namespace tessera {
namespace {

using test::expect_invalid;

// The struct of dlpack.h, laid out as its C API documents it.
enum DLDeviceType : std::int32_t { kDLCPU = 1, kDLCUDA = 2, kDLVulkan = 7 };
struct DLDevice {
  DLDeviceType device_type;
  std::int32_t device_id;
};
struct DLDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

class DlpackTest : public testing::Test {
 protected:
  DLTensor make(DLDataType dtype) { return {data_.data(), {kDLCPU, 0}, 3, dtype, shape_.data(), strides_.data(), 0}; }

  std::vector<float> data_ = std::vector<float>(256);
  std::vector<std::int64_t> shape_ = {2, 3, 4};
  std::vector<std::int64_t> strides_ = {4, 8, 1};
};

TEST_F(DlpackTest, EveryDtype) {
  EXPECT_EQ(from_dlpack(make({2, 32, 1})).dtype, DType::float32);
  EXPECT_EQ(from_dlpack(make({2, 64, 1})).dtype, DType::float64);
  EXPECT_EQ(from_dlpack(make({2, 16, 1})).dtype, DType::float16);
  EXPECT_EQ(from_dlpack(make({4, 16, 1})).dtype, DType::bfloat16);
}

TEST_F(DlpackTest, ShapeStridesAndOffset) {
  DLTensor tensor = make({2, 32, 1});
  tensor.byte_offset = 64;
  tensor.device = {kDLCUDA, 3};
  const TensorView view = from_dlpack(tensor);
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.data, reinterpret_cast<char*>(data_.data()) + 64);
  EXPECT_EQ(view.device, (Device{DeviceKind::cuda, 3}));
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 4>{2, 3, 4, 0}));
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 4>{4, 8, 1, 0}));
}

TEST_F(DlpackTest, NullStridesMeanRowMajor) {
  DLTensor tensor = make({2, 32, 1});
  tensor.strides = nullptr;
  const TensorView view = from_dlpack(tensor);
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 4>{12, 4, 1, 0}));
}

TEST_F(DlpackTest, RoundTripForEveryDtype) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64, DType::int32}) {
    const std::array<std::int64_t, 3> shape = {2, 3, 4};
    const std::array<std::int64_t, 3> strides = {4, 8, 1};
    TensorView view(data_.data(), dtype, shape, strides, Device{DeviceKind::cuda, 2});
    const DLTensor tensor = to_dlpack<DLTensor>(view);
    EXPECT_EQ(tensor.dtype.lanes, 1);
    EXPECT_EQ(tensor.shape, view.shape.data());
    const TensorView back = from_dlpack(tensor);
    EXPECT_EQ(back.data, view.data);
    EXPECT_EQ(back.dtype, dtype);
    EXPECT_EQ(back.device, view.device);
    EXPECT_EQ(back.rank, view.rank);
    EXPECT_EQ(back.shape, view.shape);
    EXPECT_EQ(back.strides, view.strides);
  }
}

TEST_F(DlpackTest, RefusesOtherDtypes) {
  const std::array<DLDataType, 4> others = {{{0, 64, 1}, {2, 32, 4}, {4, 32, 1}, {2, 8, 1}}};
  for (const DLDataType dtype : others) {
    expect_invalid({"DLPack dtype", "accepted", "bfloat16"}, [&] { from_dlpack(make(dtype)); });
  }
  expect_invalid({"DLPack dtype: int64;"}, [&] { from_dlpack(make({0, 64, 1})); });
  expect_invalid({"DLPack dtype: 4 lanes of float32;"}, [&] { from_dlpack(make({2, 32, 4})); });
  expect_invalid({"DLPack dtype: code 17, bits 8;"}, [&] { from_dlpack(make({17, 8, 1})); });
}

TEST_F(DlpackTest, RefusesOtherDevicesAndRanks) {
  DLTensor tensor = make({2, 32, 1});
  tensor.device = {kDLVulkan, 0};
  expect_invalid({"DLPack device", "7", "accepted"}, [&] { from_dlpack(tensor); });
  tensor = make({2, 32, 1});
  tensor.ndim = 0;
  expect_invalid({"DLPack rank", "0", "accepted"}, [&] { from_dlpack(tensor); });
  tensor.ndim = 5;
  expect_invalid({"DLPack rank", "5", "accepted"}, [&] { from_dlpack(tensor); });
}

}  // namespace
}  // namespace tessera
