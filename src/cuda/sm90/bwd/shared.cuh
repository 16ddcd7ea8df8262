// The shared memory of the backward kernel.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/sm90/bwd/config.h"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/ring.cuh"

namespace tessera::sm90 {

// One tile of keys, decoded by the loader for everyone.
struct BackwardTile {
  std::int32_t valid;  // 0: no more work; else, for score programs, 1 + the index of the sequence
  std::int32_t batch, key_head;
  std::int32_t query_row, key_row;  // of the sequence's first query and first key, on the token axis
  std::int32_t first_key;           // of the tile, in its sequence
  std::int32_t queries, keys, stored_keys;
  std::int32_t lower, upper;       // the band, see tile::Bounds
  std::int32_t begin, end;         // tiles of queries that see it; under a listed mask numbers of terms
  std::int32_t statistics_row;     // of the first query of the first query head
  std::int32_t statistics_stride;  // from one query head to the next
  std::int32_t start;              // of the visits, see KeyTileVisits
};
static_assert(sizeof(BackwardTile) <= 64);

// Tensor cores subtract delta, and LSE where a program does no more than add to scores. Threads read what is left, and delta where
// it is the gradient of a dropped weight. Shared memory has room for the parts and one of the two beside them: where threads read both,
// they subtract both.
template <std::uint32_t kFeatures>
struct StatisticForms {
  static constexpr bool kLseParts = !Features<kFeatures>::kHasDerivative;
  static constexpr bool kReadsLse = !kLseParts;
  static constexpr bool kReadsDelta = Features<kFeatures>::kDropout;
  static constexpr bool kReads = kReadsLse || kReadsDelta;
  static constexpr bool kDeltaParts = !(kReadsLse && kReadsDelta);
};

template <BackwardConfig kConfig, std::uint32_t kFeatures>
struct BackwardShared {
  static_assert(kConfig.shared_bytes(kFeatures != 0) <= BackwardConfig::kMostSharedBytes);
  using Forms = StatisticForms<kFeatures>;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kWarpgroups = BackwardConfig::kWarpgroups;
  static constexpr int kTileSlots = BackwardConfig::kTileSlots;
  static constexpr int kWriters = BackwardConfig::kWriters;
  static constexpr int kTileReaders = 4 * kWarpgroups + kWriters;

  std::uint8_t *keys, *values, *queries, *douts, *weights, *dq;
  std::uint8_t *parts, *units;  // see StatisticParts; tiles of A that pick the parts of LSE and of delta
  float *lse_log2, *delta;      // of score programs, where threads read them
  BackwardTile* tiles;
  std::uint64_t *bar_key_full, *bar_value_full, *bar_keys_empty;
  std::uint64_t *bar_query_full, *bar_query_empty, *bar_dout_full, *bar_dout_empty;
  std::uint64_t *bar_parts_full, *bar_parts_empty;
  std::uint64_t* bar_weights;                 // dS of a step is written, that of the one before read
  std::uint64_t *bar_dq_full, *bar_dq_empty;  // full: one for each writer
  std::uint64_t *bar_tile_full, *bar_tile_empty;
  ListedVisit* visits;  // of each stage, under a listed mask

  TESSERA_DEVICE explicit BackwardShared(std::uint8_t* s_raw) {
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
    weights = take(BackwardConfig::kWeightBuffers * kConfig.weight_bytes());
    // In front of dQ: memcheck takes these operands, which repeat rows, for twice their bytes and more.
    parts = take(kConfig.all_statistics_bytes(kFeatures != 0));
    units = parts + kConfig.parts_bytes();
    dq = take(2 * kWriters * kConfig.dq_half_bytes());
    lse_log2 = reinterpret_cast<float*>(Forms::kDeltaParts ? units + BackwardConfig::kUnitBytes : parts);
    delta = lse_log2 + (Forms::kReadsLse ? kConfig.tile_q : 0);
    tiles = reinterpret_cast<BackwardTile*>(take(64 * kTileSlots));
    const auto take_barriers = [&take](int count) { return reinterpret_cast<std::uint64_t*>(take(8 * count)); };
    bar_key_full = take_barriers(1);
    bar_value_full = take_barriers(1);
    bar_keys_empty = take_barriers(1);
    bar_query_full = take_barriers(kStages);
    bar_query_empty = take_barriers(kStages);
    bar_dout_full = take_barriers(kStages);
    bar_dout_empty = take_barriers(kStages);
    bar_parts_full = take_barriers(1);
    bar_parts_empty = take_barriers(1);
    bar_weights = take_barriers(1);
    bar_dq_full = take_barriers(kWriters);
    bar_dq_empty = take_barriers(kWriters);
    bar_tile_full = take_barriers(kTileSlots);
    bar_tile_empty = take_barriers(kTileSlots);
    visits = reinterpret_cast<ListedVisit*>(take(8 * kStages));
  }

  TESSERA_DEVICE void init_barriers() const {
    ptx::mbarrier_init(bar_key_full, 1);
    ptx::mbarrier_init(bar_value_full, 1);
    ptx::mbarrier_init(bar_keys_empty, kWarpgroups);
    ptx::mbarrier_init(bar_parts_full, 1);
    ptx::mbarrier_init(bar_parts_empty, (Forms::kReads ? 128 : 4) * kWarpgroups);
    ptx::mbarrier_init(bar_weights, 4 * kWarpgroups);
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(bar_query_full + i, 1);
      ptx::mbarrier_init(bar_query_empty + i, 128 * kWarpgroups);
      ptx::mbarrier_init(bar_dout_full + i, 1);
      ptx::mbarrier_init(bar_dout_empty + i, 128 * kWarpgroups);
    }
    for (int i = 0; i < kWriters; ++i) {
      ptx::mbarrier_init(bar_dq_empty + i, 1);
      ptx::mbarrier_init(bar_dq_full + i, 4 * kWarpgroups);
    }
    for (int i = 0; i < kTileSlots; ++i) {
      ptx::mbarrier_init(bar_tile_full + i, 1);
      ptx::mbarrier_init(bar_tile_empty + i, kTileReaders);
    }
    ptx::fence_mbarrier_init();
  }

  // 8 rows of ones where LSE has its parts, then of delta's, then zeros, each of 8 columns: every row of an operand is the same.
  // Score programs: 8 rows that pick the parts of delta, with dropout over the scale of kept weights, of which bfloat16 holds all bits;
  // in halves, since both 8 columns of an operand are these and both the same parts.
  TESSERA_DEVICE void init_units(int thread, const ScoreParams& score) const {
    if constexpr (kFeatures != 0) {
      if (thread < 8) {
        const float share = Features<kFeatures>::kDropout ? kept_share(score) : 1.0F;
        const std::uint32_t half = __float_as_uint(0.5F * share) >> 16;
        reinterpret_cast<uint4*>(units)[thread] = {0, half << 16, half | half << 16, 0};
        ptx::fence_async_shared();
      }
      return;
    }
    constexpr std::uint32_t kOne = 0x3F80;
    constexpr std::uint32_t kBoth = kOne | kOne << 16;
    if (thread < 24) {
      const uint4 rows[3] = {{kBoth, kOne, 0, 0}, {0, kOne << 16, kBoth, 0}, {0, 0, 0, 0}};
      reinterpret_cast<uint4*>(units)[thread] = thread < 8 ? rows[0] : thread < 16 ? rows[1] : rows[2];
      ptx::fence_async_shared();
    }
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
