#include "tessera/block_mask.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/fail.h"
#include "mask/block_data.h"

namespace tessera {

using internal::BlockBits;
using internal::BlockData;
using internal::BlockPattern;
using internal::BlockPatternBuilder;

namespace {

BlockMask single(const BlockGrid& grid, BlockPattern pattern) {
  BlockData data{grid, 1, 1, {}};
  data.patterns.push_back(std::move(pattern));
  return BlockData::make(std::move(data));
}

std::span<const TileVisit> part(const std::vector<TileVisit>& visits, const std::vector<std::int64_t>& offsets,
                                std::int64_t index) {
  const auto begin = static_cast<std::size_t>(offsets[static_cast<std::size_t>(index)]);
  const auto end = static_cast<std::size_t>(offsets[static_cast<std::size_t>(index) + 1]);
  return std::span(visits).subspan(begin, end - begin);
}

// The first run of ones among bits [begin, end) of a row of words.
Range next_ones(const std::uint64_t* words, std::int64_t begin, std::int64_t end) {
  const auto find = [&](std::int64_t from, bool wanted) {
    while (from < end) {
      std::uint64_t word = words[from / 64];
      word = (wanted ? word : ~word) >> (from % 64);
      if (word != 0) {
        return std::min<std::int64_t>(from + std::countr_zero(word), end);
      }
      from = (from / 64 + 1) * 64;
    }
    return end;
  };
  const std::int64_t first = find(begin, true);
  return {first, find(first, false)};
}

// One row of a pattern, walked block by block.
class RowCursor {
 public:
  RowCursor(const BlockGrid& grid, const BlockPattern& pattern, std::int64_t row)
      : grid_(grid),
        pattern_(pattern),
        next_(pattern.row_offsets[static_cast<std::size_t>(row)]),
        end_(pattern.row_offsets[static_cast<std::size_t>(row) + 1]) {}
  // The grid's number of columns at the end.
  std::int64_t column() const { return next_ == end_ ? grid_.columns() : block().index; }
  bool full() const { return block().kind == TileKind::full; }
  // bits <- bits & block, and bits | block unless the block is full.
  void restrict(BlockBits& bits) const {
    if (!full()) {
      std::transform(bits.words().begin(), bits.words().end(), words(), bits.words().begin(), std::bit_and<>());
    }
  }
  void add_to(BlockBits& bits) const {
    if (!full()) {
      std::transform(bits.words().begin(), bits.words().end(), words(), bits.words().begin(), std::bit_or<>());
    }
  }
  void advance() { ++next_; }

 private:
  const TileVisit& block() const { return pattern_.by_row[static_cast<std::size_t>(next_)]; }
  const std::uint64_t* words() const {
    return pattern_.words.data() + pattern_.first_word[static_cast<std::size_t>(next_)];
  }
  const BlockGrid& grid_;
  const BlockPattern& pattern_;
  std::int64_t next_;
  std::int64_t end_;
};

BlockPattern intersect(const BlockGrid& grid, const BlockPattern& a, const BlockPattern& b) {
  BlockPatternBuilder builder(grid);
  BlockBits bits(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    RowCursor x(grid, a, row);
    RowCursor y(grid, b, row);
    while (x.column() < grid.columns() && y.column() < grid.columns()) {
      if (x.column() != y.column()) {
        (x.column() < y.column() ? x : y).advance();
        continue;
      }
      if (x.full() && y.full()) {
        builder.add_full(x.column());
      } else {
        bits.set_all(row, x.column());
        x.restrict(bits);
        y.restrict(bits);
        builder.add(x.column(), bits);
      }
      x.advance();
      y.advance();
    }
    builder.end_row();
  }
  return builder.finish();
}

BlockPattern unite(const BlockGrid& grid, const BlockPattern& a, const BlockPattern& b) {
  BlockPatternBuilder builder(grid);
  BlockBits bits(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    RowCursor x(grid, a, row);
    RowCursor y(grid, b, row);
    while (x.column() < grid.columns() || y.column() < grid.columns()) {
      const std::int64_t column = std::min(x.column(), y.column());
      bits.clear();
      bool full = false;
      for (RowCursor* cursor : {&x, &y}) {
        if (cursor->column() == column) {
          full = full || cursor->full();
          cursor->add_to(bits);
          cursor->advance();
        }
      }
      full ? builder.add_full(column) : builder.add(column, bits);
    }
    builder.end_row();
  }
  return builder.finish();
}

std::int64_t common_extent(std::string_view what, std::int64_t a, std::int64_t b) {
  if (a != b && a != 1 && b != 1) {
    internal::fail_argument(std::string(what) + " of a combination of block masks",
                            std::to_string(a) + " and " + std::to_string(b), "equal numbers, or 1");
  }
  return std::max(a, b);
}

void require_same_grid(const BlockMask& a, const BlockMask& b) {
  if (!(a.grid() == b.grid())) {
    internal::fail_argument("grid of a combination of block masks", b.describe(), "the same grid, " + a.describe());
  }
}

template <class Combine>
BlockMask combine(const BlockMask& a, const BlockMask& b, const Combine& combine) {
  require_same_grid(a, b);
  BlockData data{
      a.grid(), common_extent("batch", a.batch(), b.batch()), common_extent("heads", a.heads(), b.heads()), {}};
  for (std::int64_t sequence = 0; sequence < data.batch; ++sequence) {
    for (std::int64_t head = 0; head < data.heads; ++head) {
      const auto pattern = [&](const BlockMask& mask) -> const BlockPattern& {
        return BlockData::of(mask).patterns[static_cast<std::size_t>(mask.pattern_of(sequence, head))];
      };
      data.patterns.push_back(combine(data.grid, pattern(a), pattern(b)));
    }
  }
  return BlockData::make(std::move(data));
}

}  // namespace

BlockMask BlockMask::from_function(const BlockGrid& grid, const std::function<bool(std::int64_t, std::int64_t)>& keep) {
  internal::validate(grid);
  constexpr std::int64_t kMostBlocks = std::int64_t{1} << 32;  // asking about each takes some ten seconds then
  if (grid.rows() * grid.columns() > kMostBlocks) {
    internal::fail_argument("grid", std::to_string(grid.rows()) + " x " + std::to_string(grid.columns()) + " blocks",
                            "2^32 blocks at most, or from_csr, which takes the kept ones alone");
  }
  BlockPatternBuilder builder(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    for (std::int64_t column = 0; column < grid.columns(); ++column) {
      if (keep(row, column)) {
        builder.add_full(column);
      }
    }
    builder.end_row();
  }
  return single(grid, builder.finish());
}

BlockMask BlockMask::from_csr(const BlockGrid& grid, std::span<const std::int64_t> offsets,
                              std::span<const std::int64_t> columns) {
  internal::validate(grid);
  const auto count = static_cast<std::int64_t>(columns.size());
  if (static_cast<std::int64_t>(offsets.size()) != grid.rows() + 1) {
    internal::fail_argument("offsets", std::to_string(offsets.size()) + " numbers",
                            "one more than the block rows, " + std::to_string(grid.rows() + 1));
  }
  if (offsets.front() != 0 || offsets.back() != count) {
    internal::fail_argument("offsets", std::to_string(offsets.front()) + " to " + std::to_string(offsets.back()),
                            "0 to the number of columns, " + std::to_string(count));
  }
  BlockPatternBuilder builder(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    const std::int64_t begin = offsets[static_cast<std::size_t>(row)];
    const std::int64_t end = offsets[static_cast<std::size_t>(row) + 1];
    if (end < begin || end > count) {
      internal::fail_argument("offsets[" + std::to_string(row + 1) + "]", end,
                              std::to_string(begin) + " to " + std::to_string(count));
    }
    std::int64_t least = 0;
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t column = columns[static_cast<std::size_t>(n)];
      if (column < least || column >= grid.columns()) {
        internal::fail_argument(
            "columns of block row " + std::to_string(row), column,
            "numbers that increase, here " + std::to_string(least) + " to " + std::to_string(grid.columns() - 1));
      }
      builder.add_full(column);
      least = column + 1;
    }
    builder.end_row();
  }
  return single(grid, builder.finish());
}

BlockMask BlockMask::from_dense(const BlockGrid& grid, std::span<const std::uint8_t> attends) {
  internal::validate(grid);
  const std::int64_t pairs = internal::checked_mul(grid.queries, grid.keys, "queries x keys");
  if (static_cast<std::int64_t>(attends.size()) != pairs) {
    internal::fail_argument("attends", std::to_string(attends.size()) + " values",
                            "queries x keys values, " + std::to_string(pairs));
  }
  BlockPatternBuilder builder(grid);
  BlockBits bits(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    const Range queries{row * grid.block_q, std::min((row + 1) * grid.block_q, grid.queries)};
    for (std::int64_t column = 0; column < grid.columns(); ++column) {
      const Range keys{column * grid.block_k, std::min((column + 1) * grid.block_k, grid.keys)};
      bits.clear();
      for (std::int64_t i = queries.begin; i < queries.end; ++i) {
        for (std::int64_t j = keys.begin; j < keys.end; ++j) {
          if (attends[static_cast<std::size_t>(i * grid.keys + j)] != 0) {
            bits.set(i - queries.begin, j - keys.begin);
          }
        }
      }
      builder.add(column, bits);
    }
    builder.end_row();
  }
  return single(grid, builder.finish());
}

BlockMask BlockMask::over_heads(std::span<const BlockMask> heads) {
  if (heads.empty()) {
    internal::fail_argument("heads", "no block masks", "one for each head");
  }
  BlockData data{heads.front().grid(), 1, static_cast<std::int64_t>(heads.size()), {}};
  for (const BlockMask& mask : heads) {
    require_same_grid(heads.front(), mask);
    if (mask.patterns() != 1) {
      internal::fail_argument("heads", mask.describe(), "block masks of one pattern each");
    }
    data.patterns.push_back(BlockData::of(mask).patterns.front());
  }
  return BlockData::make(std::move(data));
}

BlockMask BlockMask::over_batch(std::span<const BlockMask> sequences) {
  if (sequences.empty()) {
    internal::fail_argument("sequences", "no block masks", "one for each sequence of the batch");
  }
  BlockData data{sequences.front().grid(), static_cast<std::int64_t>(sequences.size()), sequences.front().heads(), {}};
  for (const BlockMask& mask : sequences) {
    require_same_grid(sequences.front(), mask);
    if (mask.batch() != 1 || mask.heads() != data.heads) {
      internal::fail_argument("sequences", mask.describe(),
                              "block masks of one sequence with the same number of heads");
    }
    const auto& patterns = BlockData::of(mask).patterns;
    data.patterns.insert(data.patterns.end(), patterns.begin(), patterns.end());
  }
  return BlockData::make(std::move(data));
}

BlockMask BlockMask::operator&(const BlockMask& other) const { return combine(*this, other, intersect); }
BlockMask BlockMask::operator|(const BlockMask& other) const { return combine(*this, other, unite); }

const BlockGrid& BlockMask::grid() const { return data_->grid; }
std::int64_t BlockMask::batch() const { return data_->batch; }
std::int64_t BlockMask::heads() const { return data_->heads; }

std::int64_t BlockMask::pattern_of(std::int64_t batch_index, std::int64_t head) const {
  return (batch() == 1 ? 0 : batch_index) * heads() + (heads() == 1 ? 0 : head);
}

std::span<const TileVisit> BlockMask::row(std::int64_t pattern, std::int64_t block_row) const {
  const BlockPattern& p = data_->patterns[static_cast<std::size_t>(pattern)];
  return part(p.by_row, p.row_offsets, block_row);
}

std::span<const TileVisit> BlockMask::column(std::int64_t pattern, std::int64_t block_column) const {
  const internal::BlockColumns& columns = data_->columns(pattern);
  return part(columns.blocks, columns.offsets, block_column);
}

bool BlockMask::attends(std::int64_t pattern, std::int64_t query, std::int64_t key) const {
  return !next_keys(pattern, query, {key, key + 1}).empty();
}

Range BlockMask::next_keys(std::int64_t pattern, std::int64_t query, Range within) const {
  const BlockGrid& grid = data_->grid;
  const BlockPattern& p = data_->patterns[static_cast<std::size_t>(pattern)];
  const std::int64_t block_row = query / grid.block_q;
  const auto blocks = row(pattern, block_row);
  const auto first = std::lower_bound(blocks.begin(), blocks.end(), within.begin / grid.block_k,
                                      [](const TileVisit& block, std::int64_t column) { return block.index < column; });
  Range run{within.end, within.end};
  for (auto block = first; block != blocks.end(); ++block) {
    const Range inside{std::max(block->index * grid.block_k, within.begin),
                       std::min((block->index + 1) * grid.block_k, within.end)};
    if (inside.empty() || (!run.empty() && inside.begin != run.end)) {
      break;
    }
    Range ones = inside;
    if (block->kind == TileKind::partial) {
      const auto n = static_cast<std::size_t>(&*block - p.by_row.data());
      const std::uint64_t* words =
          p.words.data() + p.first_word[n] + query % grid.block_q * internal::words_per_row(grid);
      const std::int64_t origin = block->index * grid.block_k;
      ones = next_ones(words, inside.begin - origin, inside.end - origin);
      ones = {ones.begin + origin, ones.end + origin};
    }
    if (run.empty()) {
      run = ones;
    } else if (ones.begin == run.end) {
      run.end = ones.end;
    } else {
      break;
    }
    if (!run.empty() && run.end != inside.end) {
      break;
    }
  }
  return run.empty() ? Range{} : run;
}

std::int64_t BlockMask::kept_blocks() const {
  std::int64_t kept = 0;
  for (const BlockPattern& pattern : data_->patterns) {
    kept += static_cast<std::int64_t>(pattern.by_row.size());
  }
  return kept;
}

double BlockMask::density() const {
  const double all =
      static_cast<double>(grid().rows()) * static_cast<double>(grid().columns()) * static_cast<double>(patterns());
  return all == 0 ? 0.0 : static_cast<double>(kept_blocks()) / all;
}

std::string BlockMask::draw(std::int64_t pattern, std::int64_t most) const {
  const std::int64_t longest = std::max(grid().rows(), grid().columns());
  const std::int64_t scale = std::max<std::int64_t>(internal::ceil_div(longest, std::max<std::int64_t>(most, 1)), 1);
  const auto extent = [&](std::int64_t blocks) { return internal::ceil_div(blocks, scale); };
  struct Cell {
    std::int64_t kept = 0;
    std::int64_t full = 0;
  };
  std::string text;
  for (std::int64_t y = 0; y < extent(grid().rows()); ++y) {
    std::vector<Cell> cells(static_cast<std::size_t>(extent(grid().columns())));
    const std::int64_t last_row = std::min((y + 1) * scale, grid().rows());
    for (std::int64_t r = y * scale; r < last_row; ++r) {
      for (const TileVisit& block : row(pattern, r)) {
        Cell& cell = cells[static_cast<std::size_t>(block.index / scale)];
        ++cell.kept;
        cell.full += block.kind == TileKind::full ? 1 : 0;
      }
    }
    for (std::size_t x = 0; x < cells.size(); ++x) {
      const auto first = static_cast<std::int64_t>(x) * scale;
      const std::int64_t blocks = (last_row - y * scale) * (std::min(first + scale, grid().columns()) - first);
      text += cells[x].kept == 0 ? '.' : cells[x].full == blocks ? '#' : '+';
    }
    text += '\n';
  }
  return text;
}

std::string BlockMask::describe() const {
  std::string text = "blocks " + std::to_string(grid().block_q) + "x" + std::to_string(grid().block_k) + ", " +
                     internal::to_text(std::round(density() * 1e4) / 1e2) + " % of " + std::to_string(grid().rows()) +
                     " x " + std::to_string(grid().columns()) + " kept";
  if (heads() > 1) {
    text += ", " + std::to_string(heads()) + " heads";
  }
  return batch() > 1 ? text + ", " + std::to_string(batch()) + " sequences" : text;
}

bool BlockMask::operator==(const BlockMask& other) const {
  const auto same = [](const BlockPattern& a, const BlockPattern& b) {
    return a.row_offsets == b.row_offsets && a.by_row == b.by_row && a.words == b.words;
  };
  const BlockData& a = *data_;
  const BlockData& b = *other.data_;
  return data_ == other.data_ || (a.grid == b.grid && a.batch == b.batch && a.heads == b.heads &&
                                  std::equal(a.patterns.begin(), a.patterns.end(), b.patterns.begin(), same));
}

}  // namespace tessera
