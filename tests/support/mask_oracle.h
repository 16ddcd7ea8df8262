// The element definition of a mask, written from its documentation and independent of the library's lowering.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "tessera/mask.h"

namespace tessera::test {

// Whether query `query` sees key `key` (both relative to the sequence).
inline bool attends(const Mask& mask, const MaskSequence& sequence, std::int64_t query, std::int64_t key) {
  const std::int64_t position = query + mask.alignment().resolve(sequence.queries, sequence.keys);
  if (mask.left() != Mask::kUnlimited && key < position - mask.left()) return false;
  if (mask.right() != Mask::kUnlimited && key > position + mask.right()) return false;
  if (mask.has_blocks() && !mask.block_mask().attends(sequence.pattern, query, key)) return false;
  if (!mask.has_segments()) return true;
  const Segments& ids = mask.segment_ids();
  return ids.query.at(static_cast<std::size_t>(sequence.query_offset + query)) ==
         ids.key.at(static_cast<std::size_t>(sequence.key_offset + key));
}

// How one tile has to be lowered: nullopt when nothing in it attends.
inline std::optional<TileKind> tile_kind(const Mask& mask, const MaskSequence& sequence, const Range& queries,
                                         const Range& keys) {
  std::int64_t seen = 0;
  for (std::int64_t i = queries.begin; i < queries.end; ++i) {
    for (std::int64_t j = keys.begin; j < keys.end; ++j) seen += attends(mask, sequence, i, j) ? 1 : 0;
  }
  if (seen == 0) return std::nullopt;
  return seen == queries.size() * keys.size() ? TileKind::full : TileKind::partial;
}

}  // namespace tessera::test
