// The producer of the kernel for dQ of wide heads; the thread that hands out tiles is the forward kernel's.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/grid.cuh"
#include "cuda/sm90/bwd_wide/queries_shared.cuh"
#include "cuda/sm90/fwd/producer.cuh"

namespace tessera::sm90 {

template <>
inline constexpr bool kHasRowsOfStatistics<BackwardQueriesParams> = true;

// One thread that keeps the copy engine busy. There is one buffer of Q and dO: they go to the L2 cache a few key tiles early,
// and to shared memory as soon as each warpgroup is through with its half.
template <BackwardQueriesConfig kConfig>
class BackwardQueriesLoader {
 public:
  using Shared = BackwardQueriesShared<kConfig>;

  TESSERA_DEVICE BackwardQueriesLoader(const BackwardQueriesParams& params, const Shared& shared)
      : params_(params), shared_(shared) {}

  TESSERA_DEVICE void run() {
    Tile tile = next_tile();
    while (tile.keys > 0) {
      load_halves(params_.q, shared_.queries, shared_.bar_query_full, shared_.bar_query_empty, tile);
      Tile next{};
      for (int i = 0; i < tile.keys; ++i) {
        if (i == max(tile.keys - kClaimedAhead, 0)) {
          ptx::mbarrier_arrive(shared_.bar_claim);
        }
        const int row = tile.last_key_row - i * kConfig.tile_k;
        load_keys(params_.k, shared_.keys, shared_.bar_key_full, shared_.bar_key_empty, key_, row, tile);
        if (i == 0) {
          load_halves(params_.dout, shared_.douts, shared_.bar_dout_full, shared_.bar_dout_empty, tile);
        }
        load_keys(params_.v, shared_.values, shared_.bar_value_full, shared_.bar_value_empty, value_, row, tile);
        if (i == max(tile.keys - kKnownAhead, 0)) {
          next = next_tile();
        }
      }
      parity_ ^= 1;
      tile = next;
    }
    ptx::wait_for_last_grid();  // this kernel must not end before the one for dK and dV
  }

 private:
  static constexpr int kColumns = BackwardQueriesConfig::kSubTileColumns;
  // Key tiles before the end of a tile of queries at which the next one is taken, and known.
  static constexpr int kClaimedAhead = 4;
  static constexpr int kKnownAhead = 2;

  // `keys` key tiles, downwards from the one that begins at row `last_key_row`.
  struct Tile {
    int keys, last_key_row, query_row, head, batch;
  };

  // None when there are no more.
  TESSERA_DEVICE Tile next_tile() {
    ptx::mbarrier_wait(shared_.bar_tile_full + slot_.slot, slot_.parity);
    const ForwardTile& work = shared_.tiles[slot_.slot];
    if (work.valid == 0) {
      return {};
    }
    const Tile tile{work.end - work.begin, work.key_row + (work.end - 1) * kConfig.tile_k,
                    work.query_row + work.first_query, work.head, work.batch};
    ptx::mbarrier_arrive(shared_.bar_tile_empty + slot_.slot);
    slot_.advance();
#pragma unroll
    for (int half = 0; half < Shared::kWarpgroups; ++half) {
#pragma unroll
      for (int x = 0; x < kConfig.sub_tiles(); ++x) {
        ptx::prefetch_box(params_.q, x * kColumns, tile.query_row + 64 * half, tile.head, tile.batch);
        ptx::prefetch_box(params_.dout, x * kColumns, tile.query_row + 64 * half, tile.head, tile.batch);
      }
    }
    return tile;
  }

  TESSERA_DEVICE void load_halves(const TensorMap& map, std::uint8_t* s_target, std::uint64_t* bar_full,
                                  std::uint64_t* bar_empty, const Tile& tile) const {
#pragma unroll
    for (int half = 0; half < Shared::kWarpgroups; ++half) {
      ptx::mbarrier_wait(bar_empty + half, parity_ ^ 1);
      ptx::mbarrier_arrive_expect(bar_full + half, kConfig.half_bytes());
#pragma unroll
      for (int x = 0; x < kConfig.sub_tiles(); ++x) {
        ptx::copy_box(s_target + half * kConfig.half_bytes() + x * 64 * 128, map, bar_full + half, x * kColumns,
                      tile.query_row + 64 * half, tile.head, tile.batch);
      }
    }
  }

  template <int kStages>
  TESSERA_DEVICE void load_keys(const TensorMap& map, std::uint8_t* s_stages, std::uint64_t* bar_full,
                                std::uint64_t* bar_empty, tile::RingPosition<kStages>& stage, int row,
                                const Tile& tile) const {
    ptx::mbarrier_wait(bar_empty + stage.slot, stage.parity ^ 1);
    std::uint64_t* const bar = bar_full + stage.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.key_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage.slot * kConfig.key_bytes() + x * kConfig.tile_k * 128, map, bar, x * kColumns, row,
                    tile.head / params_.batch.group_size, tile.batch);
    }
    stage.advance();
  }

  const BackwardQueriesParams& params_;
  const Shared& shared_;
  int parity_ = 0;  // of Q and dO
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kKeyStages> key_;
  tile::RingPosition<Shared::kValueStages> value_;
};

}  // namespace tessera::sm90
