// The producer of the kernel for dK and dV of wide heads.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/grid.cuh"
#include "cuda/sm90/bwd/tickets.cuh"
#include "cuda/sm90/bwd_wide/keys_shared.cuh"

namespace tessera::sm90 {

// One thread that hands out tiles of keys and keeps the copy engine busy. A tile that nothing sees loads nothing.
template <BackwardKeysConfig kConfig, MaskKind kMask, std::uint32_t kFeatures>
class BackwardKeysLoader {
 public:
  using Shared = BackwardKeysShared<kConfig>;

  TESSERA_DEVICE BackwardKeysLoader(const BackwardParams& params, const Shared& shared)
      : params_(params), shared_(shared), tickets_(params) {}

  TESSERA_DEVICE void run() {
    // The kernel for dQ needs LSE and delta as this one does, and nothing that this one computes: its blocks take the places of
    // those that find no more tiles.
    ptx::wait_for_last_grid();
    ptx::let_next_grid_start();
    const BackwardTile* work = &next_tile();
    while (work->valid != 0) {
      work = work->begin < work->end ? &load_tile(*work) : &next_tile();
    }
  }

 private:
  static constexpr int kColumns = BackwardKeysConfig::kSubTileColumns;
  static constexpr int kKnownAhead = 4;  // steps before the end of a tile at which the next one is taken

  // Decodes the next tile and tells the consumers. The slot stays as it is until they have released it and the loader asks
  // again.
  TESSERA_DEVICE const BackwardTile& next_tile() {
    BackwardTile& s_tile = shared_.tiles[slot_.slot];
    ptx::mbarrier_wait(shared_.bar_tile_empty + slot_.slot, slot_.parity ^ 1);
    tickets_.next(s_tile);
    ptx::mbarrier_arrive(shared_.bar_tile_full + slot_.slot);
    slot_.advance();
    return s_tile;
  }

  // The next tile, which is decoded some steps before this one ends.
  TESSERA_DEVICE const BackwardTile& load_tile(const BackwardTile& work) {
    const BackwardTile* next = nullptr;
    load_keys(params_.k, shared_.keys, shared_.bar_key_full, shared_.bar_key_empty, work);
    int left = (work.end - work.begin) * params_.batch.group_size;
    const int known = min(left, kKnownAhead);
    bool first = true;
    for (int member = 0; member < params_.batch.group_size; ++member) {
      for (int query_tile = work.end - 1; query_tile >= work.begin; --query_tile) {
        load_queries(params_.q, shared_.queries, shared_.lse_log2, params_.lse_log2, shared_.bar_query_full,
                     shared_.bar_query_empty, work, member, query_tile);
        if (first) {
          load_keys(params_.v, shared_.values, shared_.bar_value_full, shared_.bar_value_empty, work);
          first = false;
        }
        load_queries(params_.dout, shared_.douts, shared_.delta, params_.delta, shared_.bar_dout_full,
                     shared_.bar_dout_empty, work, member, query_tile);
        stage_.advance();
        if (left == known) {
          next = &next_tile();
        }
        --left;
      }
    }
    key_parity_ ^= 1;
    return *next;
  }

  TESSERA_DEVICE void load_keys(const TensorMap& map, std::uint8_t* s_target, std::uint64_t* bar_full,
                                std::uint64_t* bar_empty, const BackwardTile& work) const {
    ptx::mbarrier_wait(bar_empty, key_parity_ ^ 1);
    ptx::mbarrier_arrive_expect(bar_full, kConfig.key_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_target + x * kConfig.tile_k * 128, map, bar_full, x * kColumns, work.key_row + work.first_key,
                    work.key_head, work.batch);
    }
  }

  TESSERA_DEVICE void load_queries(const TensorMap& map, std::uint8_t* s_stages, float* s_statistics,
                                   const float* g_statistics, std::uint64_t* bar_full, std::uint64_t* bar_empty,
                                   const BackwardTile& work, int member, int query_tile) const {
    ptx::mbarrier_wait(bar_empty + stage_.slot, stage_.parity ^ 1);
    std::uint64_t* const bar = bar_full + stage_.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.query_bytes() + kConfig.statistics_bytes());
    const int row = query_tile * kConfig.tile_q;
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage_.slot * kConfig.query_bytes() + x * kConfig.tile_q * 128, map, bar, x * kColumns,
                    work.query_row + row, work.key_head * params_.batch.group_size + member, work.batch);
    }
    ptx::copy_bytes(
        s_statistics + stage_.slot * kConfig.tile_q,
        g_statistics + work.statistics_row + static_cast<std::int64_t>(member) * work.statistics_stride + row,
        kConfig.statistics_bytes(), bar);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  BackwardTickets<kConfig.tiles(), kMask, kFeatures, Tickets::late> tickets_;
  int key_parity_ = 0;
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kStages> stage_;
};

}  // namespace tessera::sm90
