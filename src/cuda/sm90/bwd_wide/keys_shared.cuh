// The shared memory of the kernel for dK and dV of wide heads.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/sm90/bwd_wide/config.h"
#include "cuda/tile/ring.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig>
struct BackwardKeysShared {
  static_assert(kConfig.tile_k == 64 && kConfig.head_dim % 64 == 0);
  static_assert(kConfig.shared_bytes() <= BackwardConfig::kMostSharedBytes);
  static constexpr int kStages = kConfig.stages;
  static constexpr int kWeightBuffers = BackwardKeysConfig::kWeightBuffers;
  static constexpr int kTileSlots = BackwardKeysConfig::kTileSlots;
  static constexpr int kConsumerWarps = 4 * BackwardKeysConfig::kWarpgroups;

  std::uint8_t *keys, *values, *queries, *douts;
  uint4* weights;  // P in 16 bits, in the order of registers
  float *lse_log2, *delta;
  BackwardTile* tiles;
  // Each pair: filled by the loader, emptied by the consumers that use it.
  std::uint64_t *bar_key_full, *bar_key_empty, *bar_value_full, *bar_value_empty;
  std::uint64_t *bar_query_full, *bar_query_empty, *bar_dout_full, *bar_dout_empty;
  std::uint64_t *bar_weight_full, *bar_weight_empty;  // from one consumer to the other
  std::uint64_t *bar_tile_full, *bar_tile_empty;

  TESSERA_DEVICE explicit BackwardKeysShared(std::uint8_t* s_raw) {
    std::uint8_t* next = s_raw;  // aligned to 1024 bytes, in which swizzled sub-tiles repeat
    const auto take = [&next](int bytes) {
      std::uint8_t* first = next;
      next += bytes;
      return first;
    };
    keys = take(kConfig.key_bytes());
    values = take(kConfig.key_bytes());
    queries = take(kStages * kConfig.query_bytes());
    douts = take(kStages * kConfig.query_bytes());
    weights = reinterpret_cast<uint4*>(take(kWeightBuffers * kConfig.weight_bytes()));
    lse_log2 = reinterpret_cast<float*>(take(kStages * kConfig.statistics_bytes()));
    delta = reinterpret_cast<float*>(take(kStages * kConfig.statistics_bytes()));
    tiles = reinterpret_cast<BackwardTile*>(take(64 * kTileSlots));
    const auto take_barriers = [&take](int count) { return reinterpret_cast<std::uint64_t*>(take(8 * count)); };
    bar_key_full = take_barriers(1);
    bar_key_empty = take_barriers(1);
    bar_value_full = take_barriers(1);
    bar_value_empty = take_barriers(1);
    bar_query_full = take_barriers(kStages);
    bar_query_empty = take_barriers(kStages);
    bar_dout_full = take_barriers(kStages);
    bar_dout_empty = take_barriers(kStages);
    bar_weight_full = take_barriers(kWeightBuffers);
    bar_weight_empty = take_barriers(kWeightBuffers);
    bar_tile_full = take_barriers(kTileSlots);
    bar_tile_empty = take_barriers(kTileSlots);
  }

  TESSERA_DEVICE void init_barriers() const {
    ptx::mbarrier_init(bar_key_full, 1);
    ptx::mbarrier_init(bar_key_empty, 128);
    ptx::mbarrier_init(bar_value_full, 1);
    ptx::mbarrier_init(bar_value_empty, 128);
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(bar_query_full + i, 1);
      ptx::mbarrier_init(bar_query_empty + i, 32 * kConsumerWarps);
      ptx::mbarrier_init(bar_dout_full + i, 1);
      ptx::mbarrier_init(bar_dout_empty + i, 32 * kConsumerWarps);
    }
    for (int i = 0; i < kWeightBuffers; ++i) {
      ptx::mbarrier_init(bar_weight_full + i, 128);
      ptx::mbarrier_init(bar_weight_empty + i, 128);
    }
    for (int i = 0; i < kTileSlots; ++i) {
      ptx::mbarrier_init(bar_tile_full + i, 1);
      ptx::mbarrier_init(bar_tile_empty + i, 32 * kConsumerWarps);
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace tessera::sm90
