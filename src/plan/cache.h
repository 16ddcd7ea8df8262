// Caches of keys on the host: lengths and page tables that come with the tensors of a run.
#pragma once

#include <cstdint>

#include "tessera/plan.h"

namespace tessera::internal {

// Keys of each sequence in use, and the pages that they are in.
struct KeyCache {
  ConstTensorView key_lengths;
  ConstTensorView page_table;  // absent: sequence b is row b of K and V
  std::int64_t rows = 0;       // of a page, or of a sequence
  std::int64_t pool = 0;       // pages, or sequences
};

inline std::int64_t length_of(const ConstTensorView& key_lengths, std::int64_t batch_index) {
  return static_cast<const std::int32_t*>(key_lengths.data)[batch_index * key_lengths.strides[0]];
}

// Throws Error(invalid_argument) that names the element of key_lengths or page_table that is wrong, unless the sequence has
// room for `more` keys, in pages that exist.
void require_room(const KeyCache& cache, std::int64_t batch_index, std::int64_t more);

// The problem with the lengths of these tensors, which must be on the host, as key_lengths. Throws for a length or a page
// that is wrong, as above.
Problem with_lengths(const Problem& problem, const ForwardTensors& tensors);

}  // namespace tessera::internal
