// Which (query, key) pairs attend, and what that lowers to: a schedule of tiles.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/block_mask.h"
#include "tessera/tile.h"

namespace tessera {

// Where query i stands among the keys: at key position i + diagonal.
struct Alignment {
  enum class Kind : std::uint8_t {
    bottom_right,  // diagonal = keys - queries of the sequence: the last query stands at the last key
    top_left,      // diagonal = 0
    at,            // diagonal = `diagonal`, for a part of a longer sequence
  };
  Kind kind = Kind::bottom_right;
  std::int64_t diagonal = 0;  // of Kind::at alone

  static Alignment bottom_right() { return {}; }
  static Alignment top_left() { return {Kind::top_left, 0}; }
  static Alignment at(std::int64_t diagonal) { return {Kind::at, diagonal}; }

  std::int64_t resolve(std::int64_t queries, std::int64_t keys) const {
    return kind == Kind::bottom_right ? keys - queries : kind == Kind::top_left ? 0 : diagonal;
  }
  bool operator==(const Alignment&) const = default;
};

// Documents packed into the sequences of a batch: a query sees the keys with its own document number alone.
// `query` holds batch * seq_q numbers and `key` batch * seq_k, row-major; in each sequence they must not decrease.
// In the ragged layout they hold one number for each token.
struct Segments {
  std::vector<std::int32_t> query;
  std::vector<std::int32_t> key;
  bool operator==(const Segments&) const = default;
};

// A set of (query, key) pairs, built from a band, segments and a block pattern; a pair attends if every part admits it.
// A value type: comparable, printable, cheap to copy without segments.
class Mask {
 public:
  static constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

  // Everything attends.
  Mask() = default;
  static Mask none() { return {}; }
  // Keys up to the query's own position.
  static Mask causal(Alignment alignment = {});
  // Keys from `left` before the query's position to `right` after it. kUnlimited leaves a side open.
  // Throws Error when a side is negative.
  static Mask window(std::int64_t left, std::int64_t right, Alignment alignment = {});
  // Packed documents; see Segments.
  static Mask segments(Segments segments);
  // The pairs of the kept blocks. Positions are those within a sequence; the grid covers the longest of the batch.
  static Mask blocks(BlockMask blocks);

  // The pairs that both masks admit. Bands with different alignments throw Error(invalid_argument), and so do two
  // different sets of segments and block masks with different grids.
  Mask operator&(const Mask& other) const;

  std::int64_t left() const { return left_; }
  std::int64_t right() const { return right_; }
  bool has_band() const { return left_ != kUnlimited || right_ != kUnlimited; }
  bool has_segments() const { return segments_.has_value(); }
  const Segments& segment_ids() const { return *segments_; }
  bool has_blocks() const { return blocks_.has_value(); }
  const BlockMask& block_mask() const { return *blocks_; }
  // Used by the band and by ALiBi.
  const Alignment& alignment() const { return alignment_; }
  Mask with_alignment(Alignment alignment) const;

  // "none", "causal", "window(128, 0) top-left & segments", "causal & blocks 128x128, 12.5 % of 32 x 32 kept", ...
  std::string describe() const;
  bool operator==(const Mask&) const = default;

 private:
  std::int64_t left_ = kUnlimited;
  std::int64_t right_ = kUnlimited;
  Alignment alignment_;
  std::optional<Segments> segments_;
  std::optional<BlockMask> blocks_;
};

// The part of a mask that one sequence and head see.
struct MaskSequence {
  std::int64_t queries = 0;       // length of the query sequence
  std::int64_t keys = 0;          // length of the key sequence
  std::int64_t query_offset = 0;  // index of its first number in Segments::query
  std::int64_t key_offset = 0;    // index of its first number in Segments::key
  std::int64_t pattern = 0;       // of the block mask
};

// What a mask lowers to for one sequence and head: for each tile of queries, the tiles of keys to visit, in ascending
// order. Tiles in which nothing attends do not exist. Without a block mask the keys of a query are one range whose ends
// never decrease with the query, and everything is computed from that: memory is O(1) for bands and O(queries) with
// segments. With a block mask the visits are listed: memory is linear in them.
class TileSchedule {
 public:
  // Throws Error for tile sizes below 1.
  TileSchedule(const Mask& mask, const MaskSequence& sequence, std::int64_t tile_q, std::int64_t tile_k);

  std::int64_t queries() const { return sequence_.queries; }
  std::int64_t keys() const { return sequence_.keys; }
  std::int64_t tile_q() const { return tile_q_; }
  std::int64_t tile_k() const { return tile_k_; }
  std::int64_t query_tiles() const;
  std::int64_t key_tiles() const;

  // The first run of consecutive keys in `within` that query `query` sees; empty when it sees none there.
  Range next_keys(std::int64_t query, Range within) const;
  // The smallest range that holds the keys that query `query` sees; {0, 0} when it sees none.
  Range keys_of(std::int64_t query) const;
  // The queries that see any key of [keys.begin, keys.end), as the smallest range that holds them.
  Range queries_of(Range keys) const;

  // The key tiles that query tile `query_tile` visits.
  std::vector<TileVisit> row(std::int64_t query_tile) const;
  // The transpose: the query tiles that visit key tile `key_tile`.
  std::vector<TileVisit> column(std::int64_t key_tile) const;
  // The same, one by one and without allocating: the first visit of the row or column whose index is `from` or more.
  std::optional<TileVisit> next_in_row(std::int64_t query_tile, std::int64_t from) const;
  std::optional<TileVisit> next_in_column(std::int64_t key_tile, std::int64_t from) const;
  // How many tiles a row or a column visits, without counting one by one: for bands, those of its span.
  std::int64_t row_size(std::int64_t query_tile) const;
  std::int64_t column_size(std::int64_t key_tile) const;
  // Whether this tile is visited and how: nullopt when nothing in it attends.
  std::optional<TileKind> visit(std::int64_t query_tile, std::int64_t key_tile) const;
  // The smallest range of key tiles that holds every tile of row(query_tile).
  Range row_span(std::int64_t query_tile) const;
  Range column_span(std::int64_t key_tile) const;

  struct Counts {
    std::int64_t full = 0;
    std::int64_t partial = 0;
    std::int64_t skipped = 0;
    std::int64_t pairs = 0;  // (query, key) pairs that attend
  };
  Counts count() const;

 private:
  struct Lists;
  Range unclipped(std::int64_t query) const;
  Range band_row_span(std::int64_t query_tile) const;
  std::optional<TileKind> band_visit(std::int64_t query_tile, std::int64_t key_tile) const;
  std::optional<TileKind> block_visit(const BlockMask& blocks, std::int64_t query_tile, std::int64_t key_tile) const;
  Range in_band(std::int64_t query, Range within) const;
  std::int64_t pairs_of(std::int64_t query_tile, const TileVisit& visit) const;
  std::shared_ptr<const Lists> list_visits(const BlockMask& blocks) const;

  MaskSequence sequence_;
  std::int64_t tile_q_ = 1;
  std::int64_t tile_k_ = 1;
  std::int64_t left_ = Mask::kUnlimited;
  std::int64_t right_ = Mask::kUnlimited;
  std::int64_t diagonal_ = 0;
  std::vector<Range> segment_keys_;     // for each query, with segments
  std::shared_ptr<const Lists> lists_;  // with a block mask
};

}  // namespace tessera
