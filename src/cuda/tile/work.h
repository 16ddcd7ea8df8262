// What kernels and their launchers share: the sequences of a batch, the band of a mask, and how work is numbered.
#pragma once

#include <cstdint>

namespace tessera {

// One sequence of a batch whose sequences differ. Rows count from the start of the tensor's (batch or token) axis.
struct SequenceEntry {
  std::int32_t query_row;
  std::int32_t key_row;
  std::int32_t queries;
  std::int32_t keys;
  std::int32_t stored_keys;  // with those behind `keys`, which nothing sees
  std::int32_t first_tile;   // of one head: tiles of the sequences before this one
  std::int32_t first_line;   // offset of its row of statistics, in a head
};

// Query i sees the keys i + lower .. i + upper, moved by keys - queries of its sequence when `bottom_right`.
struct Band {
  std::int32_t lower;
  std::int32_t upper;
  std::int32_t bottom_right;
};

// The batch as kernels see it.
struct Batch {
  const SequenceEntry* sequences;  // null: all are alike and have `queries` and `keys`
  std::int32_t count;
  std::int32_t heads_q;
  std::int32_t group_size;  // query heads of one key head
  std::int32_t queries;
  std::int32_t keys;
  std::int32_t ragged;  // sequences follow each other on the token axis, and the batch axis has one entry
};

// Strides in elements of a [batch, tokens, heads, dim] tensor, or of its LSE.
struct Strides {
  std::int64_t batch;
  std::int64_t token;
  std::int64_t head;
};

// listed: whatever a tile schedule holds, see listed.h.
enum class MaskKind : int { dense, causal, window, listed };

}  // namespace tessera
