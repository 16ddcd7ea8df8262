// From tensor views to what kernels take: tensor maps, strides, tables; every refusal of memory that they cannot take.
#pragma once

#include <string_view>
#include <vector>

#include "cuda/tensor_map.h"
#include "cuda/tile/shared_rows.h"
#include "cuda/tile/work.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Throws Error(invalid_argument) that names the tensor unless its data are memory of this device, start at a multiple of 16
// bytes and have strides that are multiples of 16 bytes.
void require_copyable(std::string_view name, const ConstTensorView& view, int device);
// The first half of that, for tensors that ordinary instructions read and write.
void require_on_device(std::string_view name, const ConstTensorView& view, int device);

// A [batch, tokens, heads, dim] or ragged tensor for boxes of `box_rows` tokens of 64 columns, swizzled by 128 bytes.
TensorMap tensor_map(const ConstTensorView& view, int box_rows);

// The rows of such a tensor for kernels that copy with ordinary instructions, in pieces as wide as its strides allow.
RowSource row_source(const ConstTensorView& view);

// Of a tokens-by-heads tensor, and of an LSE-shaped one.
Strides strides_of(const ConstTensorView& view);
Strides lse_strides_of(const ConstTensorView& view);

// Copies words to device memory in stream order; `words` may go away at once.
void write_table(int device, void* g_target, const void* words, std::int64_t count, void* stream);

// Fills every element of an output of 16-bit or 32-bit elements with zero, or an LSE with -inf.
void fill_tokens(int device, const TensorView& view, void* stream);
void fill_lse(int device, const TensorView& view, float value, void* stream);

// The sequences of a batch that are not all alike: `tile` positions of queries (or keys) a tile, rows of statistics padded to
// a multiple of `line`.
struct SequenceTable {
  std::vector<SequenceEntry> entries;
  std::int64_t tiles = 0;  // of one head
  std::int64_t line = 0;   // rows of statistics of one head
};
SequenceTable sequence_table(const Problem& problem, bool tiles_of_queries, std::int64_t tile, std::int64_t line);
// Copies its entries to device memory in stream order.
void write_table(int device, SequenceEntry* g_target, const SequenceTable& table, void* stream);

// The band of a mask, in 32 bits; of what arithmetic cannot walk, the tiles are listed.
Band band_of(const Mask& mask);
MaskKind mask_kind(const Mask& mask);
std::string_view mask_kind_name(MaskKind kind);

}  // namespace tessera::internal
