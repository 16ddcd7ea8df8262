// The rows of one sequence and head of a tensor, whichever layout the problem has.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Rows of a [batch, seq, heads, dim] or ragged [total, heads, dim] tensor; row r starts `r * row_stride` elements in.
template <class Void>
struct Rows {
  Void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t row_stride = 0;

  auto at(std::int64_t row) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    return static_cast<Void*>(static_cast<Byte*>(data) + row * row_stride * dtype_bytes(dtype));
  }
};

template <class Void>
Void* advance(Void* data, DType dtype, std::int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return data == nullptr ? nullptr : static_cast<Byte*>(data) + elements * dtype_bytes(dtype);
}

// `first_row` is SequenceSpan::query_row or key_row.
template <class Void>
Rows<Void> rows_of(const BasicTensorView<Void>& view, std::int64_t batch_index, std::int64_t first_row,
                   std::int64_t head) {
  const bool ragged = view.rank == 3;
  const std::size_t seq_axis = ragged ? 0 : 1;
  const std::int64_t begin = ragged ? first_row * view.strides[0] : batch_index * view.strides[0];
  return {advance(view.data, view.dtype, begin + head * view.strides[seq_axis + 1]), view.dtype,
          view.strides[seq_axis]};
}

// One LSE-shaped line: [batch, heads, seq] or ragged [heads, total].
template <class Void>
Rows<Void> line_of(const BasicTensorView<Void>& view, std::int64_t batch_index, std::int64_t first_row,
                   std::int64_t head) {
  if (view.rank == 2) {
    return {advance(view.data, view.dtype, head * view.strides[0] + first_row * view.strides[1]), view.dtype,
            view.strides[1]};
  }
  return {advance(view.data, view.dtype, batch_index * view.strides[0] + head * view.strides[1]), view.dtype,
          view.strides[2]};
}

}  // namespace tessera::internal
