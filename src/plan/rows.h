// The rows of one sequence and head of a tensor, whichever layout the problem has.
#pragma once

#include <bit>
#include <cstdint>

#include "core/half.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Rows of a [batch, seq, heads, dim] or ragged [total, heads, dim] tensor; row r starts `r * row_stride` elements in. With a
// table they are in pages of 2^page_log2 rows, whose numbers it holds.
template <class Void>
struct Rows {
  Void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t row_stride = 0;
  const std::int32_t* table = nullptr;
  std::int64_t table_stride = 0;
  std::int64_t page_stride = 0;
  int page_log2 = 0;

  auto at(std::int64_t row) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    std::int64_t offset = row * row_stride;
    if (table != nullptr) {
      const std::int64_t page = row >> page_log2;
      offset = table[page * table_stride] * page_stride + (row - (page << page_log2)) * row_stride;
    }
    return static_cast<Void*>(static_cast<Byte*>(data) + offset * dtype_bytes(dtype));
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

// Of K or V in the batch or ragged layout or, with a page table, [pages, page_size, heads, dim].
template <class Void>
Rows<Void> key_rows_of(const BasicTensorView<Void>& view, const ConstTensorView& page_table, std::int64_t batch_index,
                       std::int64_t first_row, std::int64_t head) {
  if (page_table.absent()) {
    return rows_of(view, batch_index, first_row, head);
  }
  Rows<Void> rows = rows_of(view, 0, 0, head);
  rows.table = static_cast<const std::int32_t*>(page_table.data) + batch_index * page_table.strides[0];
  rows.table_stride = page_table.strides[1];
  rows.page_stride = view.strides[0];
  rows.page_log2 = std::countr_zero(static_cast<std::uint64_t>(view.shape[1]));
  return rows;
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
