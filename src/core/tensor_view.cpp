#include "tessera/tensor_view.h"

#include "core/fail.h"

namespace tessera {

template <class Void>
BasicTensorView<Void>::BasicTensorView(Void* data_, DType dtype_, std::span<const std::int64_t> shape_,
                                       std::span<const std::int64_t> strides_, Device device_)
    : data(data_), dtype(dtype_), device(device_), rank(static_cast<int>(shape_.size())) {
  if (shape_.empty() || shape_.size() > kMaxRank) {
    internal::fail_argument("rank of a tensor view", static_cast<std::int64_t>(shape_.size()), "1 to 4");
  }
  if (!strides_.empty() && strides_.size() != shape_.size()) {
    internal::fail_argument("strides of a tensor view", std::to_string(strides_.size()) + " numbers",
                            "as many as the shape has, " + std::to_string(shape_.size()));
  }
  std::int64_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    const auto i = static_cast<std::size_t>(axis);
    if (shape_[i] < 0) {
      internal::fail_argument("extent " + std::to_string(axis) + " of a tensor view", shape_[i], "0 or more");
    }
    shape[i] = shape_[i];
    strides[i] = strides_.empty() ? stride : strides_[i];
    stride = internal::checked_mul(stride, shape_[i] > 0 ? shape_[i] : 1, "extents of a tensor view");
  }
}

template <class Void>
std::int64_t BasicTensorView<Void>::elements() const {
  std::int64_t product = rank == 0 ? 0 : 1;
  for (int axis = 0; axis < rank; ++axis) {
    product *= shape[static_cast<std::size_t>(axis)];
  }
  return product;
}

template <class Void>
bool BasicTensorView<Void>::contiguous() const {
  std::int64_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    const auto i = static_cast<std::size_t>(axis);
    if (shape[i] != 1 && strides[i] != stride) {
      return false;
    }
    stride *= shape[i];
  }
  return true;
}

template <class Void>
std::string BasicTensorView<Void>::describe() const {
  if (absent()) {
    return "absent";
  }
  const auto list = [this](const auto& values) {
    std::string text;
    for (int axis = 0; axis < rank; ++axis) {
      text += (axis > 0 ? ", " : "") + std::to_string(values[static_cast<std::size_t>(axis)]);
    }
    return text;
  };
  std::string text(dtype_name(dtype));
  text += "[" + list(shape) + "] strides (" + list(strides) + ")";
  if (device.kind == DeviceKind::cuda) {
    text += " on cuda:" + std::to_string(device.index);
  }
  return text;
}

template struct BasicTensorView<void>;
template struct BasicTensorView<const void>;

}  // namespace tessera
