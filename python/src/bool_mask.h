// A boolean mask as a band and key ranges, where it is nothing else, or as blocks: what it hides is then skipped.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tensors.h"
#include "tessera/block_mask.h"
#include "tessera/error.h"
#include "tessera/mask.h"

namespace tessera::python {

// Query i of every sequence sees the keys of [i + diagonal - left, i + diagonal + right] that are in the sequence's
// range.
struct BandMask {
  std::optional<std::int64_t> left;  // nothing: no limit
  std::optional<std::int64_t> right;
  std::int64_t diagonal = 0;
  std::vector<Range> keys;  // of each sequence
};

// `mask` is bool [batch or 1, heads or 1, seq_q or 1, seq_k or 1], true where a pair attends. Nothing when it is no
// band. Throws Error(invalid_argument) for another dtype, rank, extent or device.
std::optional<BandMask> band_of(const Array& mask, std::int64_t batch, std::int64_t heads, std::int64_t seq_q,
                                std::int64_t seq_k);

// The same mask as blocks, whatever it is; `grid` says how many queries and keys.
BlockMask blocks_of(const Array& mask, std::int64_t batch, std::int64_t heads, const BlockGrid& grid);

// The same of a mask that says its sizes itself: bool [batch or 1, heads or 1, seq_q, seq_k].
BlockMask blocks_of(const Array& mask, std::int64_t block_q, std::int64_t block_k);

// Whole blocks: bool [batch or 1, heads or 1, rows, columns] of the grid, true where a block is kept.
BlockMask blocks_of_grid(const Array& kept, const BlockGrid& grid);

}  // namespace tessera::python
