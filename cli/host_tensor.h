// Tensors that own their memory, in the memory layouts that callers have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "cli/random.h"
#include "tessera/tensor_view.h"

namespace tessera::cli {

// How a logical [.., tokens, heads, dim] tensor lies in memory. The last dimension is always contiguous.
enum class StrideKind : std::uint8_t {
  packed,       // row-major
  heads_first,  // the two middle dimensions swapped: [batch, heads, tokens, dim]
  padded,       // gaps between rows and between heads, and a start that is aligned to one element alone
  padded16,     // gaps, but the start and every stride are multiples of 16 bytes
};
inline constexpr int kStrideKinds = 4;
// "packed", "heads-first", "padded", "padded16"
std::string_view stride_kind_name(StrideKind kind);

// A default-constructed one is absent. Memory outside the elements (gaps of the padded kinds) and, until they are written, the
// elements themselves hold poison: a NaN in every dtype. The allocation ends with the last element.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::span<const std::int64_t> shape, StrideKind kind = StrideKind::packed);

  bool absent() const { return view_.absent(); }
  const TensorView& view() const { return view_; }
  ConstTensorView const_view() const { return view_; }
  // The whole allocation: the elements, the gaps between them and what lies before the first.
  std::span<std::byte> memory() const { return {memory_.get(), bytes_}; }

  void poison();
  // Each element from `draw`, in logical order, rounded to the dtype.
  void fill(const std::function<double()>& draw);
  // All elements in logical order.
  std::vector<double> values() const;
  // Whether the memory outside the elements still holds poison.
  bool gaps_intact() const;
  // The same values in another dtype, row-major.
  HostTensor converted(DType dtype) const;
  // The same tensor with extents of 1 repeated to `shape` by strides of 0. To be read alone.
  ConstTensorView expanded(std::span<const std::int64_t> shape) const;

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };

  TensorView view_;
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace tessera::cli
