// Non-owning views of strided tensors.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "tessera/types.h"

namespace tessera {

inline constexpr int kMaxRank = 4;

// A pointer with a dtype, a device, a shape and strides (both in elements, outermost first). The memory is the
// caller's and must outlive every use. Void is `void` for tensors that are written and `const void` for inputs.
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::float32;
  Device device{};
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};

  BasicTensorView() = default;

  // A row-major contiguous view. Throws Error when there are more than kMaxRank extents or one is negative.
  BasicTensorView(Void* data_, DType dtype_, std::initializer_list<std::int64_t> shape_, Device device_ = {})
      : BasicTensorView(data_, dtype_, std::span<const std::int64_t>(shape_.begin(), shape_.size()), {}, device_) {}

  // A view with explicit strides; an empty `strides_` means row-major contiguous.
  BasicTensorView(Void* data_, DType dtype_, std::span<const std::int64_t> shape_,
                  std::span<const std::int64_t> strides_, Device device_ = {});

  // A writable view converts to a read-only one.
  template <class Other>
    requires(std::is_const_v<Void> && std::is_same_v<Other, void>)
  BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides) {}

  // True for a default-constructed view: how an optional tensor is left out. A present tensor may have null data
  // only if it has no elements.
  bool absent() const { return rank == 0; }
  // Product of the extents.
  std::int64_t elements() const;
  bool contiguous() const;
  // For example "float32[2, 128, 8, 64] strides (65536, 512, 64, 1)".
  std::string describe() const;
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

extern template struct BasicTensorView<void>;
extern template struct BasicTensorView<const void>;

}  // namespace tessera
