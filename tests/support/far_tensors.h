// Tensors whose elements lie more than 2^31 elements apart: the memory is reserved, and a few pages of it are touched.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "cli/host_tensor.h"

namespace tessera::test {

// Address space without memory behind it until it is touched.
class Reservation {
 public:
  explicit Reservation(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() {
    if (valid()) munmap(data_, bytes_);
  }
  bool valid() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_;
};

// Lays the tensors of one problem out so that `axis` has a stride beyond 2^31 elements, one after another in `memory`.
class FarTensors {
 public:
  static constexpr std::int64_t kFarStride = (std::int64_t{1} << 31) + 12344;  // 16-byte strides

  FarTensors(void* memory, int axis) : next_(static_cast<char*>(memory)), axis_(static_cast<std::size_t>(axis)) {}

  // The same elements as `tensor`, far apart.
  TensorView place(const cli::HostTensor& tensor) {
    const TensorView near = tensor.view();
    TensorView far = near;
    far.data = next_;
    std::int64_t stride = 1;
    for (auto axis = static_cast<std::size_t>(near.rank); axis-- > 0;) {
      far.strides[axis] = axis == axis_ ? kFarStride : stride;
      stride *= axis == axis_ ? 1 : near.shape[axis];
    }
    next_ += (stride * dtype_bytes(near.dtype) + 63) / 64 * 64;
    copy(near, far);
    return far;
  }

  static void copy(const TensorView& from, const TensorView& to) {
    const auto bytes = static_cast<std::size_t>(dtype_bytes(from.dtype));
    std::array<std::int64_t, 4> shape = {1, 1, 1, 1};
    for (int axis = 0; axis < from.rank; ++axis)
      shape[static_cast<std::size_t>(axis)] = from.shape[static_cast<std::size_t>(axis)];
    for (std::int64_t a = 0; a < shape[0]; ++a) {
      for (std::int64_t b = 0; b < shape[1]; ++b) {
        for (std::int64_t c = 0; c < shape[2]; ++c) {
          for (std::int64_t d = 0; d < shape[3]; ++d) {
            const auto offset = [&](const TensorView& view) {
              return (a * view.strides[0] + b * view.strides[1] + c * view.strides[2] + d * view.strides[3]) *
                     static_cast<std::int64_t>(bytes);
            };
            std::copy_n(static_cast<const char*>(from.data) + offset(from), bytes,
                        static_cast<char*>(to.data) + offset(to));
          }
        }
      }
    }
  }

 private:
  char* next_;
  std::size_t axis_;
};

}  // namespace tessera::test
