// How kernels that copy with ordinary instructions take a tensor's rows.
#pragma once

#include <cstdint>

namespace tessera {

// The rows of a [batch, tokens, heads, dim] tensor. Strides in bytes.
struct RowSource {
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;
  std::int32_t row_bytes;    // that are there of a row
  std::int32_t piece_bytes;  // 16, 8, 4 or 2: what every address of a row is a multiple of
};

}  // namespace tessera
