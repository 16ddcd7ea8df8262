// A tile schedule in device memory, for masks that arithmetic cannot walk: segments and block patterns, and their
// intersections with bands.
#pragma once

#include <cstdint>

namespace tessera {

// `bits`: the number of the bit mask of the pairs that attend, or kAllAttend.
struct ListedVisit {
  std::int32_t tile;
  std::int32_t bits;
};
inline constexpr std::int32_t kAllAttend = -1;
inline constexpr std::int32_t kNoneAttend = -2;  // of the visit that a kernel puts in place of an empty row
// A position behind the end of every tensor, where the copy engine finds zeros.
inline constexpr std::int32_t kNowhere = 1 << 29;

// Row r visits visits[begin[r]] .. visits[begin[r + 1] - 1], in ascending order of their tiles.
struct ListedRows {
  const std::int32_t* begin;
  const ListedVisit* visits;
};

struct Listed {
  ListedRows rows;     // of each tile of queries: its key tiles
  ListedRows columns;  // of each key tile: its tiles of queries
  // Bit mask m starts at word m * tile_q * tile_k / 32; pair (query, key) of the tile is bit (query * tile_k + key), or
  // (key * tile_q + query) where the schedule was asked for bits by keys.
  // Keys behind the end of a sequence are hidden; rows behind its last query may hold anything.
  const std::uint32_t* bits;
  std::int32_t row_tiles, column_tiles;  // of one pattern: those of the longest sequence
  std::int32_t sequence_step, head_step;
};

// The row (or column) of a tile, where `tiles` is row_tiles (or column_tiles).
constexpr std::int32_t listed_row(const Listed& listed, std::int32_t tiles, std::int32_t sequence, std::int32_t head,
                                  std::int32_t tile) {
  return (sequence * listed.sequence_step + head * listed.head_step) * tiles + tile;
}

}  // namespace tessera
