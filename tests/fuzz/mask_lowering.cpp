// The lowering of any mask against its element definition, and against its own transpose.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <vector>

#include "fuzz/bytes.h"
#include "tessera/mask.h"

namespace {

using tessera::Alignment;
using tessera::BlockGrid;
using tessera::BlockMask;
using tessera::Mask;
using tessera::MaskSequence;
using tessera::Range;
using tessera::Segments;
using tessera::TileKind;
using tessera::TileSchedule;
using tessera::TileVisit;
using tessera::fuzz::Bytes;

void require(bool holds, const char* what, const Mask& mask) {
  if (!holds) {
    std::fprintf(stderr, "%s: %s\n", what, mask.describe().c_str());
    std::abort();
  }
}

// Zero, a few, any number at all, or open.
std::int64_t side(Bytes& bytes) {
  const std::int64_t kind = bytes.between(0, 3);
  if (kind == 0) {
    return Mask::kUnlimited;
  }
  return kind == 1 ? bytes.word() & Mask::kUnlimited : bytes.between(0, 40);
}

Alignment alignment(Bytes& bytes) {
  const std::int64_t kind = bytes.between(0, 3);
  return kind == 0   ? Alignment::bottom_right()
         : kind == 1 ? Alignment::top_left()
         : kind == 2 ? Alignment::at(bytes.word() / 2)
                     : Alignment::at(bytes.between(0, 100) - 50);
}

std::vector<std::int32_t> documents(Bytes& bytes, std::int64_t count) {
  std::vector<std::int32_t> ids;
  std::int32_t id = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    id += static_cast<std::int32_t>(std::max<std::int64_t>(0, bytes.between(0, 7) - 5));
    ids.push_back(id);
  }
  return ids;
}

// The definition in wide arithmetic: sides and diagonals may be near the ends of int64.
bool attends(const Mask& mask, const MaskSequence& sequence, std::int64_t query, std::int64_t key) {
  const __int128 position = static_cast<__int128>(query) + mask.alignment().resolve(sequence.queries, sequence.keys);
  if (mask.left() != Mask::kUnlimited && position - key > mask.left()) {
    return false;
  }
  if (mask.right() != Mask::kUnlimited && key - position > mask.right()) {
    return false;
  }
  if (mask.has_blocks() && !mask.block_mask().attends(0, query, key)) {
    return false;
  }
  return !mask.has_segments() || mask.segment_ids().query[static_cast<std::size_t>(query)] ==
                                     mask.segment_ids().key[static_cast<std::size_t>(key)];
}

// Runs of pairs that attend and runs that do not.
BlockMask blocks(Bytes& bytes, const BlockGrid& grid) {
  std::vector<std::uint8_t> attends(static_cast<std::size_t>(grid.queries * grid.keys), 1);
  std::size_t pair = 0;
  for (std::uint8_t value = 0; pair < attends.size(); value = 1 - value) {
    const auto end = std::min(attends.size(), pair + 1 + static_cast<std::size_t>(bytes.byte()));
    std::fill(attends.begin() + static_cast<std::ptrdiff_t>(pair), attends.begin() + static_cast<std::ptrdiff_t>(end),
              value);
    pair = end;
  }
  return BlockMask::from_dense(grid, attends);
}

void check_tile(const Mask& mask, const MaskSequence& sequence, const TileSchedule& schedule, std::int64_t query_tile,
                std::int64_t key_tile) {
  std::int64_t seen = 0;
  std::int64_t all = 0;
  for (std::int64_t i = query_tile * schedule.tile_q();
       i < std::min(sequence.queries, (query_tile + 1) * schedule.tile_q()); ++i) {
    for (std::int64_t j = key_tile * schedule.tile_k(); j < std::min(sequence.keys, (key_tile + 1) * schedule.tile_k());
         ++j) {
      const Range keys = schedule.keys_of(i);
      const bool attending = attends(mask, sequence, i, j);
      require(attending == !schedule.next_keys(i, {j, j + 1}).empty(), "next_keys", mask);
      require(!attending || (keys.begin <= j && j < keys.end), "keys_of", mask);
      seen += attending ? 1 : 0;
      ++all;
    }
  }
  const std::optional<TileKind> expected =
      seen == 0 ? std::nullopt : std::optional(seen == all ? TileKind::full : TileKind::partial);
  require(schedule.visit(query_tile, key_tile) == expected, "visit", mask);
}

void check_lists(const Mask& mask, const TileSchedule& schedule) {
  std::vector<std::vector<TileVisit>> columns(static_cast<std::size_t>(schedule.key_tiles()));
  for (std::int64_t query_tile = 0; query_tile < schedule.query_tiles(); ++query_tile) {
    const Range span = schedule.row_span(query_tile);
    std::int64_t last = -1;
    for (const TileVisit& visit : schedule.row(query_tile)) {
      require(visit.index > last && visit.index >= span.begin && visit.index < span.end, "row", mask);
      require(schedule.visit(query_tile, visit.index) == visit.kind, "row against visit", mask);
      columns[static_cast<std::size_t>(visit.index)].push_back({query_tile, visit.kind});
      last = visit.index;
    }
  }
  for (std::int64_t key_tile = 0; key_tile < schedule.key_tiles(); ++key_tile) {
    require(schedule.column(key_tile) == columns[static_cast<std::size_t>(key_tile)], "column", mask);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const MaskSequence sequence{bytes.between(0, 40), bytes.between(0, 40), 0, 0, 0};
  const std::int64_t tile_q = bytes.between(1, 17);
  const std::int64_t tile_k = bytes.between(1, 17);
  const std::int64_t left = side(bytes);
  Mask mask = Mask::window(left, side(bytes), alignment(bytes));
  if (bytes.flag()) {
    Segments segments;
    segments.query = documents(bytes, sequence.queries);
    segments.key = documents(bytes, sequence.keys);
    mask = mask & Mask::segments(segments);
  }
  if (bytes.flag()) {
    mask = mask & Mask::blocks(blocks(bytes, {sequence.queries, sequence.keys, 16, 16}));
  }
  const TileSchedule schedule(mask, sequence, tile_q, tile_k);
  for (std::int64_t query_tile = 0; query_tile < schedule.query_tiles(); ++query_tile) {
    for (std::int64_t key_tile = 0; key_tile < schedule.key_tiles(); ++key_tile) {
      check_tile(mask, sequence, schedule, query_tile, key_tile);
    }
  }
  check_lists(mask, schedule);
  return 0;
}
