// In which order blocks work on tiles whose visits are listed. The lengths of all rows are known with the plan, so that they
// are balanced there and kernels need no counter.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/tensors.h"
#include "mask/schedule_lists.h"

namespace tessera::internal {

// One tile of work, of queries or of keys.
struct ListedTile {
  std::int32_t number =
      0;  // as kernels count: (batch, head) pairs, or heads where sequences differ, times tiles of a head
  std::int32_t sequence = 0, head = 0, tile = 0;
  std::int64_t visits = 0;
};

enum class ListedSide : std::uint8_t { queries, keys };

struct ListedSizes {
  std::int64_t tile;           // positions of the side in a tile
  std::int64_t tiles_of_head;  // as in ListedTile::number
  std::int64_t token_bytes;    // what a pass reads of a key head for each position of the other side
  std::int64_t section_bytes;
};

// Tiles of queries of every query head, or of keys of every key head with the visits of all its query heads, in sections of
// (sequence, key head) pairs whose other side fits `section_bytes`: pairs that keep most come first, and in a section the
// longest tiles. Pairs whose tiles of keys are as long take turns, so that the blocks at work spread their terms of dQ over the
// tiles of queries of them all. `table` is of this side and empty where all sequences are alike.
std::vector<ListedTile> order_listed_tiles(const Problem& problem, const ScheduleLists& lists, ListedSide side,
                                           const SequenceTable& table, const ListedSizes& sizes);

// Deals tiles to `blocks` blocks, each to the one that is done first, where a tile takes as long as its visits and
// `fixed_visits` more. Entry r * blocks + b is the number of the tile that block b takes in round r, or -1.
std::vector<std::int32_t> deal_listed_tiles(const std::vector<ListedTile>& tiles, std::int64_t blocks,
                                            double fixed_visits);

}  // namespace tessera::internal
