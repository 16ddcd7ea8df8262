#include <algorithm>

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

}  // namespace

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

Range TileSchedule::keys_of(std::int64_t query) const {
  const Range range = unclipped(query);
  return range.empty() ? Range{} : range;
}

Range TileSchedule::queries_of(Range keys) const {
  if (keys.empty()) {
    return {};
  }
  std::int64_t begin = first_where(0, sequence_.queries, [&](std::int64_t i) { return unclipped(i).end > keys.begin; });
  std::int64_t end =
      first_where(begin, sequence_.queries, [&](std::int64_t i) { return unclipped(i).begin >= keys.end; });
  while (begin < end && unclipped(begin).empty()) {
    ++begin;
  }
  while (begin < end && unclipped(end - 1).empty()) {
    --end;
  }
  return begin < end ? Range{begin, end} : Range{};
}

std::optional<TileKind> TileSchedule::visit(std::int64_t query_tile, std::int64_t key_tile) const {
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

Range TileSchedule::row_span(std::int64_t query_tile) const {
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

Range TileSchedule::column_span(std::int64_t key_tile) const {
  const std::int64_t begin = key_tile * tile_k_;
  const Range queries = queries_of({begin, std::min(begin + tile_k_, sequence_.keys)});
  return queries.empty() ? Range{} : Range{queries.begin / tile_q_, ceil_div(queries.end, tile_q_)};
}

std::vector<TileVisit> TileSchedule::row(std::int64_t query_tile) const {
  std::vector<TileVisit> visits;
  const Range span = row_span(query_tile);
  for (std::int64_t tile = span.begin; tile < span.end; ++tile) {
    if (const auto kind = visit(query_tile, tile)) {
      visits.push_back({tile, *kind});
    }
  }
  return visits;
}

std::vector<TileVisit> TileSchedule::column(std::int64_t key_tile) const {
  std::vector<TileVisit> visits;
  const Range span = column_span(key_tile);
  for (std::int64_t tile = span.begin; tile < span.end; ++tile) {
    if (const auto kind = visit(tile, key_tile)) {
      visits.push_back({tile, *kind});
    }
  }
  return visits;
}

TileSchedule::Counts TileSchedule::count() const {
  Counts counts;
  for (std::int64_t query_tile = 0; query_tile < query_tiles(); ++query_tile) {
    const Range span = row_span(query_tile);
    for (std::int64_t tile = span.begin; tile < span.end; ++tile) {
      if (const auto kind = visit(query_tile, tile)) {
        ++(*kind == TileKind::full ? counts.full : counts.partial);
      }
    }
  }
  counts.skipped = query_tiles() * key_tiles() - counts.full - counts.partial;
  for (std::int64_t query = 0; query < queries(); ++query) {
    counts.pairs += unclipped(query).size();
  }
  return counts;
}

}  // namespace tessera
