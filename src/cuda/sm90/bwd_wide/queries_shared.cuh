// The shared memory of the kernel for dQ of wide heads.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/bwd_wide/config.h"
#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/tile/ring.cuh"

namespace tessera::sm90 {

template <BackwardQueriesConfig kConfig>
struct BackwardQueriesShared {
  static_assert(kConfig.tile_q == 128 && kConfig.head_dim % 64 == 0);
  static_assert(kConfig.shared_bytes() <= BackwardConfig::kMostSharedBytes);
  static constexpr int kKeyStages = kConfig.key_stages;
  static constexpr int kValueStages = kConfig.value_stages;
  static constexpr int kWarpgroups = BackwardQueriesConfig::kWarpgroups;
  static constexpr int kTileSlots = BackwardQueriesConfig::kTileSlots;

  std::uint8_t *queries, *douts;  // a half for each warpgroup
  std::uint8_t *keys, *values;
  ForwardTile* tiles;
  // Each pair: filled by the producer, emptied by the consumers; those of Q and dO one for each warpgroup.
  std::uint64_t *bar_query_full, *bar_query_empty, *bar_dout_full, *bar_dout_empty;
  std::uint64_t *bar_key_full, *bar_key_empty, *bar_value_full, *bar_value_empty;
  std::uint64_t *bar_tile_full, *bar_tile_empty;
  std::uint64_t* bar_claim;  // the loader asks for a tile

  TESSERA_DEVICE explicit BackwardQueriesShared(std::uint8_t* s_raw) {
    std::uint8_t* next = s_raw;  // aligned to 1024 bytes, in which swizzled sub-tiles repeat
    const auto take = [&next](int bytes) {
      std::uint8_t* first = next;
      next += bytes;
      return first;
    };
    queries = take(kWarpgroups * kConfig.half_bytes());
    douts = take(kWarpgroups * kConfig.half_bytes());
    keys = take(kKeyStages * kConfig.key_bytes());
    values = take(kValueStages * kConfig.key_bytes());
    tiles = reinterpret_cast<ForwardTile*>(take(64 * kTileSlots));
    const auto take_barriers = [&take](int count) { return reinterpret_cast<std::uint64_t*>(take(8 * count)); };
    bar_query_full = take_barriers(kWarpgroups);
    bar_query_empty = take_barriers(kWarpgroups);
    bar_dout_full = take_barriers(kWarpgroups);
    bar_dout_empty = take_barriers(kWarpgroups);
    bar_key_full = take_barriers(kKeyStages);
    bar_key_empty = take_barriers(kKeyStages);
    bar_value_full = take_barriers(kValueStages);
    bar_value_empty = take_barriers(kValueStages);
    bar_tile_full = take_barriers(kTileSlots);
    bar_tile_empty = take_barriers(kTileSlots);
    bar_claim = take_barriers(1);
  }

  TESSERA_DEVICE void init_barriers() const {
    for (int i = 0; i < kWarpgroups; ++i) {
      ptx::mbarrier_init(bar_query_full + i, 1);
      ptx::mbarrier_init(bar_query_empty + i, 128);
      ptx::mbarrier_init(bar_dout_full + i, 1);
      ptx::mbarrier_init(bar_dout_empty + i, 128);
    }
    for (int i = 0; i < kKeyStages; ++i) {
      ptx::mbarrier_init(bar_key_full + i, 1);
      ptx::mbarrier_init(bar_key_empty + i, 128 * kWarpgroups);
    }
    for (int i = 0; i < kValueStages; ++i) {
      ptx::mbarrier_init(bar_value_full + i, 1);
      ptx::mbarrier_init(bar_value_empty + i, 128 * kWarpgroups);
    }
    for (int i = 0; i < kTileSlots; ++i) {
      ptx::mbarrier_init(bar_tile_full + i, 1);
      ptx::mbarrier_init(bar_tile_empty + i, 128 * kWarpgroups + 1);  // and the loader
    }
    ptx::mbarrier_init(bar_claim, 1);
    ptx::fence_mbarrier_init();
  }
};

}  // namespace tessera::sm90
