#include "dist/block_part.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/fail.h"
#include "mask/block_data.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kUnit = 16;  // of block sizes

Range common(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Tokens that follow each other in one piece and one block of the whole, which is an old one here.
struct Run {
  Range tokens;
  std::int64_t old = 0;
  std::size_t piece = 0;
  std::int64_t first = 0;  // position of the first token
  std::int64_t stride = 1;

  std::int64_t position(std::int64_t token) const { return first + (token - tokens.begin) * stride; }
};

// How the blocks of one axis fall on pieces of its positions.
class CutAxis {
 public:
  CutAxis(std::int64_t old_size, std::span<const Stripe> pieces) : old_size_(old_size) {
    for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
      add_runs(pieces[piece], piece);
    }
    std::int64_t divisor = 0;  // of all edges between runs; no run is longer than a block
    std::int64_t longest_stride = 1;
    for (const Run& run : runs_) {
      divisor = std::gcd(divisor, run.tokens.begin);
      longest_stride = std::max(longest_stride, run.stride);
    }
    size_ = divisor == 0           ? old_size
            : divisor % kUnit == 0 ? divisor
                                   : std::min(old_size, round_up(ceil_div(old_size, longest_stride), kUnit));
  }

  std::int64_t size() const { return size_; }
  std::int64_t count() const { return tokens_; }
  Range tokens(std::int64_t block) const { return {block * size_, std::min((block + 1) * size_, tokens_)}; }
  // Those that share tokens with [begin, end), and those of one old block.
  std::span<const Run> runs(Range tokens) const {
    const auto first = std::partition_point(runs_.begin(), runs_.end(),
                                            [&](const Run& run) { return run.tokens.end <= tokens.begin; });
    const auto last =
        std::partition_point(first, runs_.end(), [&](const Run& run) { return run.tokens.begin < tokens.end; });
    return {first, last};
  }
  std::span<const Run> runs_of(std::int64_t old) const {
    const auto first = std::partition_point(runs_.begin(), runs_.end(), [&](const Run& run) { return run.old < old; });
    const auto last = std::partition_point(first, runs_.end(), [&](const Run& run) { return run.old == old; });
    return {first, last};
  }

 private:
  void add_runs(const Stripe& stripe, std::size_t piece) {
    std::int64_t index = 0;
    while (index < stripe.count) {
      const std::int64_t old = stripe.position(index) / old_size_;
      const std::int64_t next = std::min(stripe.count, ceil_div((old + 1) * old_size_ - stripe.begin, stripe.stride));
      runs_.push_back({{tokens_ + index, tokens_ + next}, old, piece, stripe.position(index), stripe.stride});
      index = next;
    }
    tokens_ += stripe.count;
  }

  std::int64_t old_size_;
  std::int64_t size_ = kUnit;
  std::int64_t tokens_ = 0;
  std::vector<Run> runs_;
};

class PatternCutter {
 public:
  PatternCutter(const BlockMask& whole, const CutAxis& rows, const CutAxis& columns, const BlockGrid& grid,
                const Admits& admits)
      : whole_(whole), rows_(rows), columns_(columns), grid_(grid), admits_(admits), bits_(grid_) {}

  BlockPattern cut(std::int64_t pattern) {
    BlockPatternBuilder builder(grid_);
    for (std::int64_t row = 0; row < grid_.rows(); ++row) {
      tally(pattern, row);
      for (std::int64_t column = 0; column < grid_.columns(); ++column) {
        const Tally& found = tallies_[static_cast<std::size_t>(column)];
        if (found.pairs_of_full == pairs_of_block(grid_, row, column)) {
          builder.add_full(column);
        } else if (found.touched) {
          collect_bits(pattern, row, column);
          builder.add(column, bits_);
        }
      }
      builder.end_row();
    }
    return builder.finish();
  }

 private:
  // What kept blocks of the whole have in one block.
  struct Tally {
    bool touched = false;
    std::int64_t pairs_of_full = 0;
  };

  void tally(std::int64_t pattern, std::int64_t row) {
    tallies_.assign(static_cast<std::size_t>(grid_.columns()), {});
    for (const Run& queries : rows_.runs(rows_.tokens(row))) {
      const std::int64_t count = common(queries.tokens, rows_.tokens(row)).size();
      for (const TileVisit& visit : whole_.row(pattern, queries.old)) {
        for (const Run& keys : columns_.runs_of(visit.index)) {
          if (admits_(queries.piece, keys.piece)) {
            add(count, keys.tokens, visit.kind);
          }
        }
      }
    }
  }

  void add(std::int64_t queries, Range keys, TileKind kind) {
    for (std::int64_t column = keys.begin / columns_.size(); column * columns_.size() < keys.end; ++column) {
      Tally& found = tallies_[static_cast<std::size_t>(column)];
      found.touched = true;
      if (kind == TileKind::full) {
        found.pairs_of_full += queries * common(keys, columns_.tokens(column)).size();
      }
    }
  }

  void collect_bits(std::int64_t pattern, std::int64_t row, std::int64_t column) {
    bits_.clear();
    for (const Run& queries : rows_.runs(rows_.tokens(row))) {
      const auto visits = whole_.row(pattern, queries.old);
      for (const Run& keys : columns_.runs(columns_.tokens(column))) {
        const auto visit = std::lower_bound(visits.begin(), visits.end(), keys.old,
                                            [](const TileVisit& a, std::int64_t old) { return a.index < old; });
        if (visit != visits.end() && visit->index == keys.old && admits_(queries.piece, keys.piece)) {
          set_bits(pattern, row, column, queries, keys, visit->kind);
        }
      }
    }
  }

  void set_bits(std::int64_t pattern, std::int64_t row, std::int64_t column, const Run& queries, const Run& keys,
                TileKind kind) {
    const Range of_row = rows_.tokens(row);
    const Range of_column = columns_.tokens(column);
    const Range some_queries = common(queries.tokens, of_row);
    const Range some_keys = common(keys.tokens, of_column);
    for (std::int64_t query = some_queries.begin; query < some_queries.end; ++query) {
      const std::int64_t position = queries.position(query);
      for (std::int64_t key = some_keys.begin; key < some_keys.end; ++key) {
        if (kind == TileKind::full || whole_.attends(pattern, position, keys.position(key))) {
          bits_.set(query - of_row.begin, key - of_column.begin);
        }
      }
    }
  }

  const BlockMask& whole_;
  const CutAxis& rows_;
  const CutAxis& columns_;
  const BlockGrid& grid_;
  const Admits& admits_;
  BlockBits bits_;
  std::vector<Tally> tallies_;
};

bool keeps_all(const BlockMask& blocks) {
  const auto& patterns = BlockData::of(blocks).patterns;
  const std::int64_t all = blocks.grid().rows() * blocks.grid().columns();
  return std::all_of(patterns.begin(), patterns.end(), [&](const BlockPattern& pattern) {
    return static_cast<std::int64_t>(pattern.by_row.size()) == all && pattern.words.empty();
  });
}

}  // namespace

BlockMask part_of_blocks(const BlockMask& whole, Range batch, std::span<const Stripe> queries,
                         std::span<const Stripe> keys, const Admits& admits) {
  const CutAxis rows(whole.grid().block_q, queries);
  const CutAxis columns(whole.grid().block_k, keys);
  BlockData data{{rows.count(), columns.count(), rows.size(), columns.size()},
                 whole.batch() == 1 ? 1 : batch.size(),
                 whole.heads(),
                 {}};
  PatternCutter cutter(whole, rows, columns, data.grid, admits);
  for (std::int64_t sequence = 0; sequence < data.batch; ++sequence) {
    for (std::int64_t head = 0; head < data.heads; ++head) {
      data.patterns.push_back(cutter.cut(whole.pattern_of(batch.begin + sequence, head)));
    }
  }
  return BlockData::make(std::move(data));
}

Mask mask_of_heads(const Mask& mask, Range heads) {
  if (!mask.has_blocks() || mask.block_mask().heads() == 1) {
    return mask;
  }
  const BlockMask& all = mask.block_mask();
  BlockData some{all.grid(), all.batch(), heads.size(), {}};
  for (std::int64_t sequence = 0; sequence < some.batch; ++sequence) {
    for (std::int64_t head = heads.begin; head < heads.end; ++head) {
      some.patterns.push_back(BlockData::of(all).patterns[static_cast<std::size_t>(all.pattern_of(sequence, head))]);
    }
  }
  return with_blocks(mask, BlockData::make(std::move(some)));
}

Mask with_blocks(const Mask& mask, const BlockMask& blocks) {
  Mask result = mask.has_band() ? Mask::window(mask.left(), mask.right(), mask.alignment()) : Mask::none();
  if (mask.has_segments()) {
    result = result & Mask::segments(mask.segment_ids());
  }
  if (!keeps_all(blocks)) {
    result = result & Mask::blocks(blocks);
  }
  return result.with_alignment(mask.alignment());
}

}  // namespace tessera::internal
