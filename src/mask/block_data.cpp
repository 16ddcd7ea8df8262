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

BlockColumns transpose(const BlockGrid& grid, const BlockPattern& pattern) {
  BlockColumns columns;
  columns.offsets.assign(static_cast<std::size_t>(grid.columns()) + 1, 0);
  for (const TileVisit& block : pattern.by_row) {
    ++columns.offsets[static_cast<std::size_t>(block.index) + 1];
  }
  std::partial_sum(columns.offsets.begin(), columns.offsets.end(), columns.offsets.begin());
  std::vector<std::int64_t> next(columns.offsets.begin(), columns.offsets.end() - 1);
  columns.blocks.resize(pattern.by_row.size());
  for (std::int64_t r = 0; r < grid.rows(); ++r) {
    const auto row = static_cast<std::size_t>(r);
    for (std::int64_t n = pattern.row_offsets[row]; n < pattern.row_offsets[row + 1]; ++n) {
      const TileVisit& block = pattern.by_row[static_cast<std::size_t>(n)];
      columns.blocks[static_cast<std::size_t>(next[static_cast<std::size_t>(block.index)]++)] = {r, block.kind};
    }
  }
  return columns;
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

BlockMask BlockData::make(BlockData data) {
  data.transposes = std::vector<BlockTranspose>(data.patterns.size());
  return BlockMask(std::make_shared<const BlockData>(std::move(data)));
}

const BlockColumns& BlockData::columns(std::int64_t pattern) const {
  const auto index = static_cast<std::size_t>(pattern);
  BlockTranspose& result = transposes[index];
  std::call_once(result.once, [&] { result.columns = transpose(grid, patterns[index]); });
  return result.columns;
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

}  // namespace tessera::internal
