#include "cli/host_tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>

namespace tessera::cli {
namespace {

constexpr std::array<std::int64_t, 4> kShape{2, 3, 4, 5};
constexpr std::array kKinds{StrideKind::packed, StrideKind::heads_first, StrideKind::padded, StrideKind::padded16};

HostTensor counted(DType dtype, StrideKind kind) {
  HostTensor tensor(dtype, kShape, kind);
  double next = 0;
  tensor.fill([&] { return next++; });
  return tensor;
}

TEST(HostTensor, DefaultIsAbsent) {
  EXPECT_TRUE(HostTensor().absent());
  EXPECT_TRUE(HostTensor().values().empty());
  EXPECT_TRUE(HostTensor().converted(DType::float64).absent());
}

TEST(HostTensor, ElementsArePoisonUntilTheyAreWritten) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
    HostTensor tensor(dtype, kShape);
    for (const double value : tensor.values()) {
      EXPECT_TRUE(std::isnan(value));
    }
    tensor.fill([] { return 1.0; });
    EXPECT_EQ(tensor.values().front(), 1.0);
    tensor.poison();
    EXPECT_TRUE(std::isnan(tensor.values().front()));
  }
}

TEST(HostTensor, ValuesComeInLogicalOrderWhateverTheStrides) {
  std::vector<double> expected(120);
  std::iota(expected.begin(), expected.end(), 0.0);
  for (const StrideKind kind : kKinds) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
      EXPECT_EQ(counted(dtype, kind).values(), expected) << stride_kind_name(kind);
    }
    EXPECT_EQ(counted(DType::bfloat16, kind).converted(DType::float64).values(), expected);
  }
}

TEST(HostTensor, StridesAreThoseOfTheKind) {
  EXPECT_TRUE(HostTensor(DType::float32, kShape).view().contiguous());
  const TensorView heads_first = HostTensor(DType::float32, kShape, StrideKind::heads_first).view();
  EXPECT_EQ(heads_first.strides, (std::array<std::int64_t, 4>{60, 5, 15, 1}));
  const HostTensor padded(DType::bfloat16, kShape, StrideKind::padded);
  EXPECT_EQ(padded.view().strides[3], 1);
  EXPECT_GT(padded.view().strides[2], 5);
  EXPECT_GT(padded.view().strides[1], 4 * padded.view().strides[2]);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(padded.view().data) % 4, 2U) << "aligned to an element alone";
}

TEST(HostTensor, Padded16HasGapsAndMultiplesOf16Bytes) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
    const HostTensor tensor(dtype, kShape, StrideKind::padded16);
    const TensorView& view = tensor.view();
    const std::int64_t bytes = dtype_bytes(dtype);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % 64, 16U);
    EXPECT_EQ(view.strides[3], 1);
    EXPECT_GE(view.strides[2] * bytes, 5 * bytes + 16);
    EXPECT_GE(view.strides[1], 4 * view.strides[2] + 16 / bytes);
    for (const std::size_t axis : {0U, 1U, 2U}) EXPECT_EQ(view.strides[axis] * bytes % 16, 0) << axis;
    static_cast<char*>(view.data)[5 * bytes] = 0;
    EXPECT_FALSE(tensor.gaps_intact());
  }
}

TEST(HostTensor, MemoryIsTheWholeAllocation) {
  for (const StrideKind kind : kKinds) {
    const HostTensor tensor = counted(DType::float32, kind);
    const auto memory = tensor.memory();
    const auto* first = static_cast<const std::byte*>(tensor.view().data);
    std::int64_t last = 0;
    for (std::size_t axis = 0; axis < 4; ++axis) last += (kShape[axis] - 1) * tensor.view().strides[axis];
    EXPECT_EQ(memory.data() + memory.size(), first + 4 * (last + 1)) << stride_kind_name(kind);
    EXPECT_LE(memory.data(), first);
  }
  EXPECT_TRUE(HostTensor().memory().empty());
}

TEST(HostTensor, SeesWritesIntoGaps) {
  const HostTensor tensor = counted(DType::float32, StrideKind::padded);
  EXPECT_TRUE(tensor.gaps_intact());
  auto* data = static_cast<float*>(tensor.view().data);
  data[5] = 0;  // behind the first row of five
  EXPECT_FALSE(tensor.gaps_intact());
  const HostTensor before = counted(DType::float32, StrideKind::padded);
  static_cast<float*>(before.view().data)[-1] = 0;
  EXPECT_FALSE(before.gaps_intact());
}

TEST(HostTensor, ExpandsExtentsOfOneByStridesOfZero) {
  const HostTensor tensor(DType::float32, std::array<std::int64_t, 4>{1, 1, 4, 5});
  const ConstTensorView view = tensor.expanded(kShape);
  EXPECT_EQ(view.shape, kShape);
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 4>{0, 0, 5, 1}));
}

TEST(HostTensor, HoldsNoElements) {
  const HostTensor tensor(DType::float32, std::array<std::int64_t, 3>{4, 0, 8}, StrideKind::padded);
  EXPECT_FALSE(tensor.absent());
  EXPECT_TRUE(tensor.values().empty());
  EXPECT_TRUE(tensor.gaps_intact());
}

}  // namespace
}  // namespace tessera::cli
