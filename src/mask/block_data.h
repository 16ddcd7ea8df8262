// What a BlockMask holds, and how one is put together row by row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "tessera/block_mask.h"

namespace tessera::internal {

// Kept blocks by columns. It has an offset for every column of the grid, kept or not.
struct BlockColumns {
  std::vector<std::int64_t> offsets;
  std::vector<TileVisit> blocks;
};

// Kept blocks of one pattern.
struct BlockPattern {
  static constexpr std::int64_t kNoBits = -1;

  std::vector<std::int64_t> row_offsets{0};
  std::vector<TileVisit> by_row;
  std::vector<std::int64_t> first_word;  // of the bits of each block of by_row; kNoBits for full ones
  std::vector<std::uint64_t> words;      // block_q rows of bits a partial block, each row in whole words
};

struct BlockTranspose {
  std::once_flag once;
  BlockColumns columns;
};

struct BlockData {
  BlockGrid grid;
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::vector<BlockPattern> patterns;
  mutable std::vector<BlockTranspose> transposes = {};  // of each pattern of a mask

  static BlockMask make(BlockData data);
  static const BlockData& of(const BlockMask& mask) { return *mask.data_; }

  // Transposed when it is first asked for, from any number of threads: until then a mask takes memory for its rows and blocks
  // alone, however many keys its grid has.
  const BlockColumns& columns(std::int64_t pattern) const;
};

// Throws Error that names the field which is wrong.
void validate(const BlockGrid& grid);

inline std::int64_t words_per_row(const BlockGrid& grid) { return (grid.block_k + 63) / 64; }
inline std::int64_t words_per_block(const BlockGrid& grid) { return grid.block_q * words_per_row(grid); }

// The bits of one block, whatever its kind.
class BlockBits {
 public:
  explicit BlockBits(const BlockGrid& grid)
      : grid_(&grid), words_(static_cast<std::size_t>(words_per_block(grid)), std::uint64_t{0}) {}
  void clear() { std::fill(words_.begin(), words_.end(), std::uint64_t{0}); }
  void set(std::int64_t r, std::int64_t c) { words_[word(r, c)] |= std::uint64_t{1} << (c % 64); }
  // Every pair of block (block_row, block_column) that is inside the grid.
  void set_all(std::int64_t block_row, std::int64_t block_column);
  std::vector<std::uint64_t>& words() { return words_; }
  const std::vector<std::uint64_t>& words() const { return words_; }
  std::int64_t count() const;

 private:
  std::size_t word(std::int64_t r, std::int64_t c) const {
    return static_cast<std::size_t>(r * words_per_row(*grid_) + c / 64);
  }
  const BlockGrid* grid_;
  std::vector<std::uint64_t> words_;
};

// Adds blocks in ascending order of (row, column).
class BlockPatternBuilder {
 public:
  explicit BlockPatternBuilder(const BlockGrid& grid) : grid_(&grid) {}
  void add_full(std::int64_t column);
  // Drops a block without bits and makes one with all of them full.
  void add(std::int64_t column, const BlockBits& bits);
  void end_row();
  // After the last row.
  BlockPattern finish() { return std::move(pattern_); }

 private:
  std::int64_t row() const { return static_cast<std::int64_t>(pattern_.row_offsets.size()) - 1; }
  const BlockGrid* grid_;
  BlockPattern pattern_;
};

// Pairs of block (block_row, block_column) inside the grid.
std::int64_t pairs_of_block(const BlockGrid& grid, std::int64_t block_row, std::int64_t block_column);

}  // namespace tessera::internal
