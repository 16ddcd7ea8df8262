#include "mask/block_data.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "core/fail.h"

namespace tessera::internal {

namespace {

void validate_block_size(std::string_view name, std::int64_t size) {
  constexpr std::int64_t kUnit = 16;
  constexpr std::int64_t kLargest = 8192;
  if (size < kUnit || size > kLargest || size % kUnit != 0) {
    fail_argument(name, size, "multiples of 16 from 16 to 8192");
  }
}

void validate_length(std::string_view name, std::int64_t length, std::int64_t block) {
  constexpr std::int64_t kMostBlocks = std::int64_t{1} << 24;
  if (length < 0 || length > kMostBlocks * block) {
    fail_argument(name, length, "0 to 2^24 blocks, " + std::to_string(kMostBlocks * block));
  }
}

}  // namespace

void validate(const BlockGrid& grid) {
  validate_block_size("grid.block_q", grid.block_q);
  validate_block_size("grid.block_k", grid.block_k);
  validate_length("grid.queries", grid.queries, grid.block_q);
  validate_length("grid.keys", grid.keys, grid.block_k);
}

std::int64_t pairs_of_block(const BlockGrid& grid, std::int64_t block_row, std::int64_t block_column) {
  return std::min(grid.block_q, grid.queries - block_row * grid.block_q) *
         std::min(grid.block_k, grid.keys - block_column * grid.block_k);
}

void BlockBits::set_all(std::int64_t block_row, std::int64_t block_column) {
  clear();
  const std::int64_t rows = std::min(grid_->block_q, grid_->queries - block_row * grid_->block_q);
  const std::int64_t columns = std::min(grid_->block_k, grid_->keys - block_column * grid_->block_k);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      set(r, c);
    }
  }
}

std::int64_t BlockBits::count() const {
  return std::accumulate(words_.begin(), words_.end(), std::int64_t{0},
                         [](std::int64_t sum, std::uint64_t word) { return sum + std::popcount(word); });
}

void BlockPatternBuilder::add_full(std::int64_t column) {
  pattern_.by_row.push_back({column, TileKind::full});
  pattern_.first_word.push_back(BlockPattern::kNoBits);
}

void BlockPatternBuilder::add(std::int64_t column, const BlockBits& bits) {
  const std::int64_t pairs = bits.count();
  if (pairs == 0) {
    return;
  }
  if (pairs == pairs_of_block(*grid_, row(), column)) {
    add_full(column);
    return;
  }
  pattern_.by_row.push_back({column, TileKind::partial});
  pattern_.first_word.push_back(static_cast<std::int64_t>(pattern_.words.size()));
  pattern_.words.insert(pattern_.words.end(), bits.words().begin(), bits.words().end());
}

void BlockPatternBuilder::end_row() {
  pattern_.row_offsets.push_back(static_cast<std::int64_t>(pattern_.by_row.size()));
}

BlockPattern BlockPatternBuilder::finish() {
  BlockPattern& p = pattern_;
  p.column_offsets.assign(static_cast<std::size_t>(grid_->columns()) + 1, 0);
  for (const TileVisit& block : p.by_row) {
    ++p.column_offsets[static_cast<std::size_t>(block.index) + 1];
  }
  std::partial_sum(p.column_offsets.begin(), p.column_offsets.end(), p.column_offsets.begin());
  std::vector<std::int64_t> next(p.column_offsets.begin(), p.column_offsets.end() - 1);
  p.by_column.resize(p.by_row.size());
  for (std::int64_t r = 0; r < row(); ++r) {
    const auto index = static_cast<std::size_t>(r);
    for (std::int64_t n = p.row_offsets[index]; n < p.row_offsets[index + 1]; ++n) {
      const TileVisit& block = p.by_row[static_cast<std::size_t>(n)];
      p.by_column[static_cast<std::size_t>(next[static_cast<std::size_t>(block.index)]++)] = {r, block.kind};
    }
  }
  return std::move(pattern_);
}

}  // namespace tessera::internal
