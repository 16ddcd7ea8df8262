// TensorView to and from DLPack (https://dmlc.github.io/dlpack/latest/c_api.html).
//
// The functions are templates over the caller's own DLTensor, so that this header needs no DLPack header and fits every
// version of the struct.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tessera/error.h"
#include "tessera/tensor_view.h"

namespace tessera {

namespace dlpack {
inline constexpr int kCpu = 1;
inline constexpr int kCuda = 2;
inline constexpr int kInteger = 0;
inline constexpr int kFloat = 2;
inline constexpr int kBfloat = 4;

// "int64", "float8", "complex64", ..; "4 lanes of float32" for vectors.
inline std::string dtype_text(int code, int bits, int lanes) {
  constexpr std::array<const char*, 7> kNames{"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const bool known = code >= 0 && code < static_cast<int>(kNames.size());
  const std::string name = known ? kNames[static_cast<std::size_t>(code)] : "code " + std::to_string(code) + ", bits ";
  return (lanes == 1 ? "" : std::to_string(lanes) + " lanes of ") + name + std::to_string(bits);
}
}  // namespace dlpack

// A view of `tensor`. Throws Error(invalid_argument) for a dtype, device or rank that Tessera does not have.
template <class DLTensor>
TensorView from_dlpack(const DLTensor& tensor) {
  TensorView view;
  const int code = static_cast<int>(tensor.dtype.code);
  const int bits = static_cast<int>(tensor.dtype.bits);
  if (tensor.dtype.lanes == 1 && code == dlpack::kFloat && bits == 32) {
    view.dtype = DType::float32;
  } else if (tensor.dtype.lanes == 1 && code == dlpack::kFloat && bits == 64) {
    view.dtype = DType::float64;
  } else if (tensor.dtype.lanes == 1 && code == dlpack::kFloat && bits == 16) {
    view.dtype = DType::float16;
  } else if (tensor.dtype.lanes == 1 && code == dlpack::kBfloat && bits == 16) {
    view.dtype = DType::bfloat16;
  } else if (tensor.dtype.lanes == 1 && code == dlpack::kInteger && bits == 32) {
    view.dtype = DType::int32;
  } else {
    throw Error(ErrorCode::invalid_argument,
                "DLPack dtype: " + dlpack::dtype_text(code, bits, tensor.dtype.lanes) +
                    "; accepted: float32, float64, float16, bfloat16 and int32 with one lane");
  }
  const int device = static_cast<int>(tensor.device.device_type);
  if (device != dlpack::kCpu && device != dlpack::kCuda) {
    throw Error(ErrorCode::invalid_argument,
                "DLPack device: type " + std::to_string(device) + "; accepted: 1 (CPU) and 2 (CUDA)");
  }
  view.device = {device == dlpack::kCpu ? DeviceKind::cpu : DeviceKind::cuda,
                 static_cast<std::int32_t>(tensor.device.device_id)};
  const int rank = static_cast<int>(tensor.ndim);
  if (rank < 1 || rank > kMaxRank) {
    throw Error(ErrorCode::invalid_argument, "DLPack rank: " + std::to_string(rank) + "; accepted: 1 to 4");
  }
  view.rank = rank;
  std::int64_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    view.shape[axis] = tensor.shape[axis];
    view.strides[axis] = tensor.strides == nullptr ? stride : tensor.strides[axis];
    stride *= tensor.shape[axis];
  }
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

// A DLTensor that points into `view`: its shape and strides are the view's own arrays, so the view must outlive it.
template <class DLTensor>
DLTensor to_dlpack(TensorView& view) {
  DLTensor tensor{};
  const int code = view.dtype == DType::bfloat16 ? dlpack::kBfloat
                   : view.dtype == DType::int32  ? dlpack::kInteger
                                                 : dlpack::kFloat;
  tensor.data = view.data;
  tensor.device.device_type = static_cast<decltype(tensor.device.device_type)>(
      view.device.kind == DeviceKind::cpu ? dlpack::kCpu : dlpack::kCuda);
  tensor.device.device_id = view.device.index;
  tensor.ndim = view.rank;
  tensor.dtype.code = static_cast<std::uint8_t>(code);
  tensor.dtype.bits = static_cast<std::uint8_t>(8 * dtype_bytes(view.dtype));
  tensor.dtype.lanes = 1;
  tensor.shape = view.shape.data();
  tensor.strides = view.strides.data();
  tensor.byte_offset = 0;
  return tensor;
}

}  // namespace tessera
