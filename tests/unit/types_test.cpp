#include "tessera/types.h"

#include <gtest/gtest.h>

#include <array>

#include "support/expect_error.h"
#include "tessera/error.h"
#include "tessera/version.h"

namespace tessera {
namespace {

using test::expect_invalid;

constexpr std::array kAllDTypes = {DType::float32, DType::bfloat16, DType::float16, DType::float64};

TEST(Types, BytesOfEachDType) {
  EXPECT_EQ(dtype_bytes(DType::float32), 4);
  EXPECT_EQ(dtype_bytes(DType::bfloat16), 2);
  EXPECT_EQ(dtype_bytes(DType::float16), 2);
  EXPECT_EQ(dtype_bytes(DType::float64), 8);
}

TEST(Types, NamesAreReadBack) {
  for (const DType dtype : kAllDTypes) EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  EXPECT_EQ(dtype_name(DType::bfloat16), "bfloat16");
  EXPECT_EQ(dtype_from_name("f32"), DType::float32);
  EXPECT_EQ(dtype_from_name("bf16"), DType::bfloat16);
  EXPECT_EQ(dtype_from_name("f16"), DType::float16);
  EXPECT_EQ(dtype_from_name("f64"), DType::float64);
}

TEST(Types, UnknownNameIsRefusedWithTheAcceptedOnes) {
  expect_invalid({"int8", "float32", "bfloat16", "float16"}, [] { dtype_from_name("int8"); });
  expect_invalid({"float32"}, [] { dtype_from_name(""); });
  expect_invalid({"Float32"}, [] { dtype_from_name("Float32"); });
}

TEST(Types, PassNames) {
  EXPECT_EQ(pass_name(Pass::forward), "forward");
  EXPECT_EQ(pass_name(Pass::backward), "backward");
}

TEST(Types, DevicesCompareByKindAndIndex) {
  EXPECT_EQ(Device{}, (Device{DeviceKind::cpu, 0}));
  EXPECT_NE((Device{DeviceKind::cuda, 0}), (Device{DeviceKind::cuda, 1}));
  EXPECT_NE((Device{DeviceKind::cuda, 0}), Device{});
}

TEST(Types, ErrorKeepsCodeAndMessage) {
  const Error error(ErrorCode::unsupported, "head_dim 513");
  EXPECT_EQ(error.code(), ErrorCode::unsupported);
  EXPECT_STREQ(error.what(), "head_dim 513");
}

TEST(Types, VersionStringMatchesItsNumbers) {
  EXPECT_EQ(std::string(kVersion),
            std::to_string(kVersionMajor) + "." + std::to_string(kVersionMinor) + "." + std::to_string(kVersionPatch));
}

}  // namespace
}  // namespace tessera
