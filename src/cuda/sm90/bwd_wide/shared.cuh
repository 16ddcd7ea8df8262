// The shared memory of the backward kernel for wide heads.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/bwd/visits.cuh"
#include "cuda/sm90/bwd_wide/config.h"
#include "cuda/tile/ring.cuh"

namespace tessera::sm90 {

template <BackwardWideConfig kConfig>
struct BackwardWideShared {
  static_assert(kConfig.tile_q == 64 && kConfig.tile_k == 64 && kConfig.head_dim % 64 == 0);
  static_assert(kConfig.shared_bytes() <= BackwardConfig::kMostSharedBytes);
  static constexpr int kStages = kConfig.stages;
  static constexpr int kDoutStages = kConfig.dout_stages();
  static constexpr int kWarpgroups = BackwardWideConfig::kWarpgroups;
  static constexpr int kTileSlots = BackwardWideConfig::kTileSlots;
  static constexpr int kTileReaders = 4 * kWarpgroups + kWarpgroups;  // consumer warps and dQ writers

  std::uint8_t *keys, *values, *queries, *douts, *score_gradients, *dq;
  float4* weights;  // in the order of registers
  float *lse_log2, *delta;
  BackwardTile* tiles;
  std::uint64_t *bar_key_full, *bar_value_full, *bar_keys_empty;
  std::uint64_t *bar_query_full, *bar_query_empty, *bar_dout_full, *bar_dout_empty;
  std::uint64_t *bar_dq_full, *bar_dq_empty;
  std::uint64_t *bar_tile_full, *bar_tile_empty;

  TESSERA_DEVICE explicit BackwardWideShared(std::uint8_t* s_raw) {
    std::uint8_t* next = s_raw;  // aligned to 1024 bytes, in which swizzled sub-tiles repeat
    const auto take = [&next](int bytes) {
      std::uint8_t* first = next;
      next += bytes;
      return first;
    };
    keys = take(kConfig.key_bytes());
    values = take(kConfig.key_bytes());
    queries = take(kStages * kConfig.query_bytes());
    douts = take(kDoutStages * kConfig.query_bytes());
    score_gradients = take(kConfig.score_gradient_bytes());
    weights = reinterpret_cast<float4*>(take(kConfig.weight_bytes()));
    dq = take(kWarpgroups * kConfig.dq_block_bytes());
    lse_log2 = reinterpret_cast<float*>(take(kStages * kConfig.statistics_bytes()));
    delta = reinterpret_cast<float*>(take(kDoutStages * kConfig.statistics_bytes()));
    tiles = reinterpret_cast<BackwardTile*>(take(64 * kTileSlots));
    const auto take_barriers = [&take](int count) { return reinterpret_cast<std::uint64_t*>(take(8 * count)); };
    bar_key_full = take_barriers(1);
    bar_value_full = take_barriers(1);
    bar_keys_empty = take_barriers(1);
    bar_query_full = take_barriers(kStages);
    bar_query_empty = take_barriers(kStages);
    bar_dout_full = take_barriers(kDoutStages);
    bar_dout_empty = take_barriers(kDoutStages);
    bar_dq_full = take_barriers(kWarpgroups);
    bar_dq_empty = take_barriers(kWarpgroups);
    bar_tile_full = take_barriers(kTileSlots);
    bar_tile_empty = take_barriers(kTileSlots);
  }

  TESSERA_DEVICE void init_barriers() const {
    ptx::mbarrier_init(bar_key_full, 1);
    ptx::mbarrier_init(bar_value_full, 1);
    ptx::mbarrier_init(bar_keys_empty, kWarpgroups);
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(bar_query_full + i, 1);
      ptx::mbarrier_init(bar_query_empty + i, kWarpgroups);
    }
    for (int i = 0; i < kDoutStages; ++i) {
      ptx::mbarrier_init(bar_dout_full + i, 1);
      ptx::mbarrier_init(bar_dout_empty + i, kWarpgroups);
    }
    for (int i = 0; i < kWarpgroups; ++i) {
      ptx::mbarrier_init(bar_dq_full + i, 4);
      ptx::mbarrier_init(bar_dq_empty + i, 1);
    }
    for (int i = 0; i < kTileSlots; ++i) {
      ptx::mbarrier_init(bar_tile_full + i, 1);
      ptx::mbarrier_init(bar_tile_empty + i, kTileReaders);
    }
    ptx::fence_mbarrier_init();
  }

  // The next tile, which stays where it is until this warp releases it.
  TESSERA_DEVICE const BackwardTile& await_tile(const tile::RingPosition<kTileSlots>& position) const {
    ptx::mbarrier_wait(bar_tile_full + position.slot, position.parity);
    return tiles[position.slot];
  }
  TESSERA_DEVICE void release_tile(tile::RingPosition<kTileSlots>& position) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(bar_tile_empty + position.slot);
    }
    position.advance();
  }
};

}  // namespace tessera::sm90
