#include <algorithm>
#include <numeric>
#include <span>

#include "core/fail.h"
#include "tessera/mask.h"

namespace tessera {

namespace {

using internal::ceil_div;

// The smallest i in [begin, end) for which predicate(i) holds, or end; the predicate must be monotone.
template <class Predicate>
std::int64_t first_where(std::int64_t begin, std::int64_t end, Predicate predicate) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (predicate(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

std::int64_t saturating_add(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    return b > 0 ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int64_t>::min();
  }
  return sum;
}

std::vector<Range> keys_of_segments(const Segments& segments, const MaskSequence& sequence) {
  std::vector<Range> ranges(static_cast<std::size_t>(sequence.queries));
  Range range;
  for (std::int64_t i = 0; i < sequence.queries; ++i) {
    const std::int32_t document = segments.query[static_cast<std::size_t>(sequence.query_offset + i)];
    const auto key = [&](std::int64_t j) { return segments.key[static_cast<std::size_t>(sequence.key_offset + j)]; };
    while (range.begin < sequence.keys && key(range.begin) < document) {
      ++range.begin;
    }
    range.end = std::max(range.end, range.begin);
    while (range.end < sequence.keys && key(range.end) <= document) {
      ++range.end;
    }
    ranges[static_cast<std::size_t>(i)] = range;
  }
  return ranges;
}

// Adds the tiles that overlap `range` and are not the last of `tiles` yet.
void append_tiles(std::vector<std::int64_t>& tiles, Range range, std::int64_t tile) {
  for (std::int64_t index = range.begin / tile; index * tile < range.end; ++index) {
    if (tiles.empty() || tiles.back() != index) {
      tiles.push_back(index);
    }
  }
}

std::int64_t first_at_least(std::span<const TileVisit> visits, std::int64_t index) {
  return std::lower_bound(visits.begin(), visits.end(), index,
                          [](const TileVisit& visit, std::int64_t wanted) { return visit.index < wanted; }) -
         visits.begin();
}

std::optional<TileVisit> first_from(std::span<const TileVisit> visits, std::int64_t from) {
  const std::int64_t n = first_at_least(visits, from);
  return n == static_cast<std::int64_t>(visits.size()) ? std::nullopt
                                                       : std::optional(visits[static_cast<std::size_t>(n)]);
}

Range span_of(std::span<const TileVisit> visits) {
  return visits.empty() ? Range{} : Range{visits.front().index, visits.back().index + 1};
}

// Whether every pair of these queries and keys is in a full block.
bool blocks_are_full(const BlockMask& blocks, std::int64_t pattern, Range queries, Range keys) {
  const BlockGrid& grid = blocks.grid();
  const std::int64_t first_column = keys.begin / grid.block_k;
  const std::int64_t last_column = ceil_div(keys.end, grid.block_k);
  for (std::int64_t block_row = queries.begin / grid.block_q; block_row * grid.block_q < queries.end; ++block_row) {
    const auto row = blocks.row(pattern, block_row);
    const auto kept = row.subspan(static_cast<std::size_t>(first_at_least(row, first_column)));
    const auto wanted = static_cast<std::size_t>(last_column - first_column);
    const bool full = kept.size() >= wanted && kept[wanted - 1].index == last_column - 1 &&
                      std::all_of(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(wanted),
                                  [](const TileVisit& block) { return block.kind == TileKind::full; });
    if (!full) {
      return false;
    }
  }
  return true;
}

}  // namespace

// A block mask and the visits that it leads to, by rows and by columns.
struct TileSchedule::Lists {
  struct Side {
    std::vector<std::size_t> offsets{0};
    std::vector<TileVisit> visits;
    std::span<const TileVisit> operator[](std::int64_t index) const {
      const auto n = static_cast<std::size_t>(index);
      return std::span(visits).subspan(offsets[n], offsets[n + 1] - offsets[n]);
    }
  };
  BlockMask blocks;
  Side rows, columns;

  void transpose(std::int64_t key_tiles);
};

void TileSchedule::Lists::transpose(std::int64_t key_tiles) {
  columns.offsets.assign(static_cast<std::size_t>(key_tiles) + 1, 0);
  for (const TileVisit& visit : rows.visits) {
    ++columns.offsets[static_cast<std::size_t>(visit.index) + 1];
  }
  std::partial_sum(columns.offsets.begin(), columns.offsets.end(), columns.offsets.begin());
  std::vector<std::size_t> next(columns.offsets.begin(), columns.offsets.end() - 1);
  columns.visits.resize(rows.visits.size());
  for (std::size_t row = 0; row + 1 < rows.offsets.size(); ++row) {
    for (std::size_t n = rows.offsets[row]; n < rows.offsets[row + 1]; ++n) {
      const TileVisit& visit = rows.visits[n];
      columns.visits[next[static_cast<std::size_t>(visit.index)]++] = {static_cast<std::int64_t>(row), visit.kind};
    }
  }
}

TileSchedule::TileSchedule(const Mask& mask, const MaskSequence& sequence, std::int64_t tile_q, std::int64_t tile_k)
    : sequence_(sequence),
      tile_q_(tile_q),
      tile_k_(tile_k),
      left_(mask.left()),
      right_(mask.right()),
      diagonal_(mask.alignment().resolve(sequence.queries, sequence.keys)) {
  if (tile_q < 1) {
    internal::fail_argument("tile_q", tile_q, "1 or more");
  }
  if (tile_k < 1) {
    internal::fail_argument("tile_k", tile_k, "1 or more");
  }
  if (mask.has_segments()) {
    segment_keys_ = keys_of_segments(mask.segment_ids(), sequence);
  }
  if (mask.has_blocks()) {
    lists_ = list_visits(mask.block_mask());
  }
}

std::shared_ptr<const TileSchedule::Lists> TileSchedule::list_visits(const BlockMask& blocks) const {
  const BlockGrid& grid = blocks.grid();
  auto lists = std::make_shared<Lists>(Lists{blocks, {}, {}});
  std::vector<std::int64_t> tiles;
  for (std::int64_t query_tile = 0; query_tile < query_tiles(); ++query_tile) {
    const Range span = band_row_span(query_tile);
    const Range queries{query_tile * tile_q_, std::min((query_tile + 1) * tile_q_, sequence_.queries)};
    tiles.clear();
    for (std::int64_t block_row = queries.begin / grid.block_q; block_row * grid.block_q < queries.end; ++block_row) {
      for (const TileVisit& block : blocks.row(sequence_.pattern, block_row)) {
        const Range keys{std::max(block.index * grid.block_k, span.begin * tile_k_),
                         std::min((block.index + 1) * grid.block_k, std::min(span.end * tile_k_, sequence_.keys))};
        append_tiles(tiles, keys, tile_k_);
      }
    }
    std::sort(tiles.begin(), tiles.end());
    tiles.erase(std::unique(tiles.begin(), tiles.end()), tiles.end());
    for (const std::int64_t tile : tiles) {
      if (const auto kind = block_visit(blocks, query_tile, tile)) {
        lists->rows.visits.push_back({tile, *kind});
      }
    }
    lists->rows.offsets.push_back(lists->rows.visits.size());
  }
  lists->transpose(key_tiles());
  return lists;
}

std::int64_t TileSchedule::query_tiles() const { return ceil_div(sequence_.queries, tile_q_); }
std::int64_t TileSchedule::key_tiles() const { return ceil_div(sequence_.keys, tile_k_); }

// Both ends never decrease with the query; the range may be empty.
Range TileSchedule::unclipped(std::int64_t query) const {
  const std::int64_t position = saturating_add(query, diagonal_);
  Range range{0, sequence_.keys};
  if (left_ != Mask::kUnlimited) {
    range.begin = std::max(range.begin, saturating_add(position, -left_));
  }
  if (right_ != Mask::kUnlimited) {
    range.end = std::min(range.end, saturating_add(saturating_add(position, right_), 1));
  }
  if (!segment_keys_.empty()) {
    const Range& segment = segment_keys_[static_cast<std::size_t>(query)];
    range.begin = std::max(range.begin, segment.begin);
    range.end = std::min(range.end, segment.end);
  }
  return range;
}

Range TileSchedule::in_band(std::int64_t query, Range within) const {
  const Range seen = unclipped(query);
  const Range clipped{std::max(within.begin, seen.begin), std::min(within.end, seen.end)};
  return clipped.empty() ? Range{} : clipped;
}

Range TileSchedule::next_keys(std::int64_t query, Range within) const {
  const Range clipped = in_band(query, within);
  return lists_ && !clipped.empty() ? lists_->blocks.next_keys(sequence_.pattern, query, clipped) : clipped;
}

Range TileSchedule::keys_of(std::int64_t query) const {
  const Range first = next_keys(query, {0, sequence_.keys});
  std::int64_t end = first.end;
  for (Range run = first; lists_ && !run.empty(); run = next_keys(query, {end, sequence_.keys})) {
    end = run.end;
  }
  return {first.begin, end};
}

Range TileSchedule::queries_of(Range keys) const {
  if (keys.empty()) {
    return {};
  }
  std::int64_t begin = first_where(0, sequence_.queries, [&](std::int64_t i) { return unclipped(i).end > keys.begin; });
  std::int64_t end =
      first_where(begin, sequence_.queries, [&](std::int64_t i) { return unclipped(i).begin >= keys.end; });
  while (begin < end && next_keys(begin, keys).empty()) {
    ++begin;
  }
  while (begin < end && next_keys(end - 1, keys).empty()) {
    --end;
  }
  return begin < end ? Range{begin, end} : Range{};
}

std::optional<TileKind> TileSchedule::band_visit(std::int64_t query_tile, std::int64_t key_tile) const {
  const std::int64_t first = query_tile * tile_q_;
  const std::int64_t last = std::min(first + tile_q_, sequence_.queries);
  const std::int64_t key_begin = key_tile * tile_k_;
  const std::int64_t key_end = std::min(key_begin + tile_k_, sequence_.keys);
  if (first >= last || key_begin >= key_end) {
    return std::nullopt;
  }
  if (unclipped(last - 1).begin <= key_begin && unclipped(first).end >= key_end) {
    return TileKind::full;
  }
  std::int64_t row = first_where(first, last, [&](std::int64_t i) { return unclipped(i).end > key_begin; });
  while (row < last && unclipped(row).empty()) {
    ++row;
  }
  if (row == last || unclipped(row).begin >= key_end) {
    return std::nullopt;
  }
  return TileKind::partial;
}

std::optional<TileKind> TileSchedule::block_visit(const BlockMask& blocks, std::int64_t query_tile,
                                                  std::int64_t key_tile) const {
  const auto band = band_visit(query_tile, key_tile);
  if (!band) {
    return std::nullopt;
  }
  const Range queries{query_tile * tile_q_, std::min((query_tile + 1) * tile_q_, sequence_.queries)};
  const Range keys{key_tile * tile_k_, std::min((key_tile + 1) * tile_k_, sequence_.keys)};
  if (band == TileKind::full && blocks_are_full(blocks, sequence_.pattern, queries, keys)) {
    return TileKind::full;
  }
  bool any = false;
  bool all = true;
  for (std::int64_t query = queries.begin; query < queries.end && (all || !any); ++query) {
    const Range run = blocks.next_keys(sequence_.pattern, query, in_band(query, keys));
    any = any || !run.empty();
    all = all && run == keys;
  }
  return all ? std::optional(TileKind::full) : any ? std::optional(TileKind::partial) : std::nullopt;
}

std::optional<TileKind> TileSchedule::visit(std::int64_t query_tile, std::int64_t key_tile) const {
  if (!lists_) {
    return band_visit(query_tile, key_tile);
  }
  if (query_tile >= query_tiles()) {
    return std::nullopt;
  }
  const auto found = first_from(lists_->rows[query_tile], key_tile);
  return found && found->index == key_tile ? std::optional(found->kind) : std::nullopt;
}

Range TileSchedule::band_row_span(std::int64_t query_tile) const {
  std::int64_t first = query_tile * tile_q_;
  std::int64_t last = std::min(first + tile_q_, sequence_.queries);
  while (first < last && unclipped(first).empty()) {
    ++first;
  }
  while (first < last && unclipped(last - 1).empty()) {
    --last;
  }
  if (first >= last) {
    return {};
  }
  return {unclipped(first).begin / tile_k_, ceil_div(unclipped(last - 1).end, tile_k_)};
}

Range TileSchedule::row_span(std::int64_t query_tile) const {
  return lists_ ? span_of(lists_->rows[query_tile]) : band_row_span(query_tile);
}

Range TileSchedule::column_span(std::int64_t key_tile) const {
  if (lists_) {
    return span_of(lists_->columns[key_tile]);
  }
  const std::int64_t begin = key_tile * tile_k_;
  const Range queries = queries_of({begin, std::min(begin + tile_k_, sequence_.keys)});
  return queries.empty() ? Range{} : Range{queries.begin / tile_q_, ceil_div(queries.end, tile_q_)};
}

std::int64_t TileSchedule::row_size(std::int64_t query_tile) const {
  return lists_ ? static_cast<std::int64_t>(lists_->rows[query_tile].size()) : band_row_span(query_tile).size();
}

std::int64_t TileSchedule::column_size(std::int64_t key_tile) const {
  return lists_ ? static_cast<std::int64_t>(lists_->columns[key_tile].size()) : column_span(key_tile).size();
}

std::optional<TileVisit> TileSchedule::next_in_row(std::int64_t query_tile, std::int64_t from) const {
  if (lists_) {
    return first_from(lists_->rows[query_tile], from);
  }
  const Range span = band_row_span(query_tile);
  for (std::int64_t tile = std::max(from, span.begin); tile < span.end; ++tile) {
    if (const auto kind = band_visit(query_tile, tile)) {
      return TileVisit{tile, *kind};
    }
  }
  return std::nullopt;
}

std::optional<TileVisit> TileSchedule::next_in_column(std::int64_t key_tile, std::int64_t from) const {
  if (lists_) {
    return first_from(lists_->columns[key_tile], from);
  }
  const Range span = column_span(key_tile);
  for (std::int64_t tile = std::max(from, span.begin); tile < span.end; ++tile) {
    if (const auto kind = band_visit(tile, key_tile)) {
      return TileVisit{tile, *kind};
    }
  }
  return std::nullopt;
}

std::vector<TileVisit> TileSchedule::row(std::int64_t query_tile) const {
  std::vector<TileVisit> visits;
  for (auto visit = next_in_row(query_tile, 0); visit; visit = next_in_row(query_tile, visit->index + 1)) {
    visits.push_back(*visit);
  }
  return visits;
}

std::vector<TileVisit> TileSchedule::column(std::int64_t key_tile) const {
  std::vector<TileVisit> visits;
  for (auto visit = next_in_column(key_tile, 0); visit; visit = next_in_column(key_tile, visit->index + 1)) {
    visits.push_back(*visit);
  }
  return visits;
}

std::int64_t TileSchedule::pairs_of(std::int64_t query_tile, const TileVisit& visit) const {
  const Range queries{query_tile * tile_q_, std::min((query_tile + 1) * tile_q_, sequence_.queries)};
  const Range keys{visit.index * tile_k_, std::min((visit.index + 1) * tile_k_, sequence_.keys)};
  if (visit.kind == TileKind::full) {
    return queries.size() * keys.size();
  }
  std::int64_t pairs = 0;
  for (std::int64_t query = queries.begin; query < queries.end; ++query) {
    for (Range run = next_keys(query, keys); !run.empty(); run = next_keys(query, {run.end, keys.end})) {
      pairs += run.size();
    }
  }
  return pairs;
}

TileSchedule::Counts TileSchedule::count() const {
  Counts counts;
  for (std::int64_t query_tile = 0; query_tile < query_tiles(); ++query_tile) {
    for (auto visit = next_in_row(query_tile, 0); visit; visit = next_in_row(query_tile, visit->index + 1)) {
      ++(visit->kind == TileKind::full ? counts.full : counts.partial);
      counts.pairs += pairs_of(query_tile, *visit);
    }
  }
  counts.skipped = query_tiles() * key_tiles() - counts.full - counts.partial;
  return counts;
}

}  // namespace tessera
