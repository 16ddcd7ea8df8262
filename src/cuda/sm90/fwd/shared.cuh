// The shared memory of the forward kernel.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/fwd/config.h"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/ring.cuh"

namespace tessera::sm90 {

// One tile of queries, decoded by the producer for the consumers.
struct ForwardTile {
  std::int32_t valid;  // 0: no more work; else, for score programs, 1 + the index of the sequence
  std::int32_t batch, head, key_head;
  std::int32_t query_row, key_row;  // of the sequence's first query and first key, on the token axis
  std::int32_t first_query, queries, keys;
  std::int32_t lower, upper;  // the band, see tile::Bounds
  std::int32_t begin, end;    // key tiles to visit, from the last to the first; under a listed mask numbers of visits
  union {
    std::int32_t first_line;  // of backward kernels: where the sequence's padded rows of statistics begin, in a head
    std::int32_t turn;        // of the forward one, see key_tile_of()
  };
};
static_assert(sizeof(ForwardTile) <= 64);

// Scores with a penalty of the distance are largest at the diagonal. A walk that comes to it from afar moves the maxima in every
// step, one that begins there in none.
template <MaskKind kMask, std::uint32_t kFeatures>
inline constexpr bool kStartsAtDiagonal = (kMask == MaskKind::dense || kMask == MaskKind::window) &&
                                          (Features<kFeatures>::kAlibi || Features<kFeatures>::kFunction);

// The key tile of visit `j`, of which the last one is the first: `turn` tiles before it, around the beginning to the end.
TESSERA_DEVICE int key_tile_of(const ForwardTile& work, int j) {
  const int tile = j - work.turn;
  return tile < work.begin ? tile + (work.end - work.begin) : tile;
}

template <ForwardConfig kConfig>
struct ForwardShared {
  static constexpr int kStages = kConfig.stages;
  static constexpr int kQuerySlots = kConfig.query_slots();
  static constexpr int kTileSlots = ForwardConfig::kTileSlots;

  std::uint8_t* queries;
  std::uint8_t* keys;
  std::uint8_t* values;
  std::uint8_t* output;  // where O is staged
  ForwardTile* tiles;
  // Each pair: filled by the producer, emptied by the consumers.
  std::uint64_t *bar_query_full, *bar_query_empty;
  std::uint64_t *bar_key_full, *bar_key_empty;
  std::uint64_t *bar_value_full, *bar_value_empty;
  std::uint64_t *bar_tile_full, *bar_tile_empty;
  std::uint64_t* bar_claim;  // the loader asks for a tile
  ListedVisit* visits;       // of each stage, under a listed mask

  TESSERA_DEVICE explicit ForwardShared(std::uint8_t* s_raw) {  // aligned to kSharedAlignment
    queries = s_raw;
    keys = queries + kQuerySlots * kConfig.query_bytes();
    values = keys + kStages * kConfig.key_bytes();
    output = values + kStages * kConfig.key_bytes();
    tiles = reinterpret_cast<ForwardTile*>(output +
                                           (kConfig.stages_output() ? kConfig.warpgroups * kConfig.query_bytes() : 0));
    auto* bars = reinterpret_cast<std::uint64_t*>(reinterpret_cast<std::uint8_t*>(tiles) + 64 * kTileSlots);
    const auto take = [&bars](int count) {
      std::uint64_t* first = bars;
      bars += count;
      return first;
    };
    bar_key_full = take(kStages);
    bar_key_empty = take(kStages);
    bar_value_full = take(kStages);
    bar_value_empty = take(kStages);
    bar_query_full = take(kQuerySlots);
    bar_query_empty = take(kQuerySlots);
    bar_tile_full = take(kTileSlots);
    bar_tile_empty = take(kTileSlots);
    bar_claim = take(1);
    visits = reinterpret_cast<ListedVisit*>(bars);
  }

  // Of a warpgroup, for a stage of keys: one when its scores are complete and, under a listed mask, one of every thread that has
  // read the visit. The barrier of the turn orders the same reads, and so does __syncwarp in front of one arrival of each warp, but
  // racecheck follows neither.
  static constexpr int key_arrivals(MaskKind mask) { return mask == MaskKind::listed ? 129 : 1; }

  TESSERA_DEVICE void init_barriers(MaskKind mask) const {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(bar_key_full + i, 1);
      ptx::mbarrier_init(bar_key_empty + i, key_arrivals(mask) * kConfig.warpgroups);
      ptx::mbarrier_init(bar_value_full + i, 1);
      ptx::mbarrier_init(bar_value_empty + i, kConfig.warpgroups);
    }
    for (int i = 0; i < kQuerySlots; ++i) {
      ptx::mbarrier_init(bar_query_full + i, 1);
      ptx::mbarrier_init(bar_query_empty + i, 1);
    }
    ptx::mbarrier_init(bar_claim, 1);
    for (int i = 0; i < kTileSlots; ++i) {
      ptx::mbarrier_init(bar_tile_full + i, 1);
      ptx::mbarrier_init(bar_tile_empty + i, 4 * kConfig.warpgroups + 1);
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace tessera::sm90
