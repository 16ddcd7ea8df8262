// The tile schedules of a problem as arrays, for kernels that cannot ask a TileSchedule: visits by rows and by columns, and
// one bit for each pair of the tiles that are partial.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/problem.h"

namespace tessera::internal {

// How the bits of a tile follow each other: keys of a query together, or queries of a key.
enum class BitOrder : std::uint8_t { by_query, by_key };

// Patterns follow each other: row r of pattern p is row p * row_tiles + r.
struct ScheduleLists {
  static constexpr std::int32_t kAllAttend = -1;

  struct Visit {
    std::int32_t tile = 0;           // of keys in a row, of queries in a column
    std::int32_t bits = kAllAttend;  // number of a bit mask
    bool operator==(const Visit&) const = default;
  };
  struct Side {
    std::vector<std::int32_t> begin{0};  // of each row (or column), and the end of the last
    std::vector<Visit> visits;           // of a row in ascending order of their tiles
    std::span<const Visit> operator[](std::int64_t line) const {
      const auto n = static_cast<std::size_t>(line);
      return std::span(visits).subspan(static_cast<std::size_t>(begin[n]),
                                       static_cast<std::size_t>(begin[n + 1] - begin[n]));
    }
  };

  Side rows, columns;
  // Equal masks are kept once. Pairs behind the end of a sequence are not set; a tile of which they are the only hidden ones
  // has a mask if keys are among them, and is full if they are behind the last query.
  std::vector<std::uint32_t> bits;
  std::int32_t row_tiles = 0, column_tiles = 0;   // of one pattern: those of the longest sequence
  std::int32_t sequence_step = 0, head_step = 0;  // the pattern of (sequence, query head): their sum of products
  std::int64_t partial_visits = 0;

  std::int64_t row_of(std::int64_t sequence, std::int64_t head, std::int64_t tile) const {
    return (sequence * sequence_step + head * head_step) * row_tiles + tile;
  }
  std::int64_t column_of(std::int64_t sequence, std::int64_t head, std::int64_t tile) const {
    return (sequence * sequence_step + head * head_step) * column_tiles + tile;
  }
};

// `tile_k` (and `tile_q` for bits by key) is a multiple of 32. Throws Error where the visits do not fit 32 bits.
ScheduleLists list_schedules(const Problem& problem, std::int64_t tile_q, std::int64_t tile_k,
                             BitOrder order = BitOrder::by_query);

}  // namespace tessera::internal
