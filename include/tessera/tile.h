// Ranges of positions and tiles of (query, key) pairs.
#pragma once

#include <cstdint>

namespace tessera {

// A half-open range of positions; empty when end <= begin.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const { return end <= begin; }
  std::int64_t size() const { return empty() ? 0 : end - begin; }
  bool operator==(const Range&) const = default;
};

enum class TileKind : std::uint8_t { full, partial };

// A tile to visit: every pair of a full one attends; a partial one has pairs that do and pairs that do not.
struct TileVisit {
  std::int64_t index = 0;  // of the key tile in a row, of the query tile in a column
  TileKind kind = TileKind::full;
  bool operator==(const TileVisit&) const = default;
};

}  // namespace tessera
