// The producer warpgroup of the backward kernel for wide heads: one warp loads, two carry dQ to memory.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/sm90/bwd/tickets.cuh"
#include "cuda/sm90/bwd_wide/shared.cuh"

namespace tessera::sm90 {

// One thread that hands out tiles of keys and keeps the copy engine busy. See BackwardLoader; here Q and dO have rings of
// their own.
template <BackwardWideConfig kConfig, MaskKind kMask>
class BackwardWideLoader {
 public:
  using Shared = BackwardWideShared<kConfig>;

  TESSERA_DEVICE BackwardWideLoader(const BackwardParams& params, const Shared& shared)
      : params_(params), shared_(shared), tickets_(params) {}

  TESSERA_DEVICE void run() {
    for (int round = 0;; ++round) {
      const BackwardTile& work = next_tile();
      if (work.valid == 0) {
        return;
      }
      ptx::mbarrier_wait(shared_.bar_keys_empty, (round & 1) ^ 1);
      load_keys(params_.k, shared_.keys, shared_.bar_key_full, work);
      const BackwardVisits<kConfig.tiles(), kMask> visits(work, params_.order);
      if (visits.count() == 0) {
        load_keys(params_.v, shared_.values, shared_.bar_value_full, work);
      }
      for (int member = 0; member < params_.batch.group_size; ++member) {
        for (int step = 0; step < visits.count(); ++step) {
          const int query_tile = visits.at(step);
          load_queries(params_.q, shared_.queries, shared_.lse_log2, params_.lse_log2, shared_.bar_query_full,
                       shared_.bar_query_empty, query_, work, member, query_tile);
          if (member == 0 && step == 0) {
            load_keys(params_.v, shared_.values, shared_.bar_value_full, work);
          }
          load_queries(params_.dout, shared_.douts, shared_.delta, params_.delta, shared_.bar_dout_full,
                       shared_.bar_dout_empty, dout_, work, member, query_tile);
        }
      }
    }
  }

 private:
  static constexpr int kColumns = BackwardWideConfig::kSubTileColumns;

  // Decodes the next tile and tells the others. The slot stays as it is until all have read it and the loader asks again.
  TESSERA_DEVICE const BackwardTile& next_tile() {
    BackwardTile& s_tile = shared_.tiles[slot_.slot];
    ptx::mbarrier_wait(shared_.bar_tile_empty + slot_.slot, slot_.parity ^ 1);
    tickets_.next(s_tile);
    ptx::mbarrier_arrive(shared_.bar_tile_full + slot_.slot);
    slot_.advance();
    return s_tile;
  }

  TESSERA_DEVICE void load_keys(const TensorMap& map, std::uint8_t* s_target, std::uint64_t* bar,
                                const BackwardTile& work) const {
    ptx::mbarrier_arrive_expect(bar, kConfig.key_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_target + x * kConfig.tile_k * 128, map, bar, x * kColumns, work.key_row + work.first_key,
                    work.key_head, work.batch);
    }
  }

  template <int kStages>
  TESSERA_DEVICE void load_queries(const TensorMap& map, std::uint8_t* s_stages, float* s_statistics,
                                   const float* g_statistics, std::uint64_t* bar_full, std::uint64_t* bar_empty,
                                   tile::RingPosition<kStages>& stage, const BackwardTile& work, int member,
                                   int query_tile) const {
    ptx::mbarrier_wait(bar_empty + stage.slot, stage.parity ^ 1);
    std::uint64_t* bar = bar_full + stage.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.query_bytes() + kConfig.statistics_bytes());
    const int row = query_tile * kConfig.tile_q;
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage.slot * kConfig.query_bytes() + x * kConfig.tile_q * 128, map, bar, x * kColumns,
                    work.query_row + row, work.key_head * params_.batch.group_size + member, work.batch);
    }
    ptx::copy_bytes(
        s_statistics + stage.slot * kConfig.tile_q,
        g_statistics + work.statistics_row + static_cast<std::int64_t>(member) * work.statistics_stride + row,
        kConfig.statistics_bytes(), bar);
    stage.advance();
  }

  const BackwardParams& params_;
  const Shared& shared_;
  BackwardTickets<kConfig.tiles(), kMask> tickets_;
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kStages> query_;
  tile::RingPosition<Shared::kDoutStages> dout_;
};

// One warp for each consumer warpgroup: adds its blocks of dQ of a tile of queries to memory, when it is their turn.
template <BackwardWideConfig kConfig, MaskKind kMask, int kHalf>
class DqBlockWriter {
 public:
  using Shared = BackwardWideShared<kConfig>;
  using Visits = BackwardVisits<kConfig.tiles(), kMask>;

  TESSERA_DEVICE DqBlockWriter(const BackwardParams& params, const Shared& shared)
      : params_(params), shared_(shared), s_block_(shared.dq + kHalf * kConfig.dq_block_bytes()) {}

  TESSERA_DEVICE void run() {
    tile::RingPosition<Shared::kTileSlots> slot;
    while (true) {
      const BackwardTile& work = shared_.await_tile(slot);
      if (work.valid == 0) {
        break;
      }
      if (threadIdx.x % 32 == 0) {
        const Visits visits(work, params_.order);
        for (int member = 0; member < params_.batch.group_size; ++member) {
          for (int step = 0; step < visits.count(); ++step) {
            add(work, visits, member, visits.at(step));
          }
        }
      }
      shared_.release_tile(slot);
    }
    ptx::bulk_wait<0>();
  }

 private:
  TESSERA_DEVICE void add(const BackwardTile& work, const Visits& visits, int member, int query_tile) {
    const std::int64_t row =
        work.statistics_row + static_cast<std::int64_t>(member) * work.statistics_stride + query_tile * kConfig.tile_q;
    float* const g_blocks =
        params_.dq_sum + row * kConfig.dq_columns() + kConfig.dq_first_block(kHalf) * (kConfig.dq_block_bytes() / 4);
    if (params_.order.turns == nullptr) {
      add_blocks(g_blocks, false);
      return;
    }
    std::int32_t* const g_turn = params_.order.turns + row / kConfig.tile_q * BackwardWideConfig::kTurnsOfTile + kHalf;
    const int turn = visits.turn(query_tile);
    ptx::wait_until_equal(g_turn, turn);
    add_blocks(g_blocks, turn == 0);
    ptx::bulk_wait<0>();
    ptx::release_store(g_turn, turn + 1);
  }

  // One block after the other through the same shared memory. The first term of a tile of queries is stored: memory holds
  // anything before it.
  TESSERA_DEVICE void add_blocks(float* g_block, bool first) {
#pragma unroll
    for (int block = 0; block < kConfig.dq_blocks(kHalf); ++block) {
      ptx::mbarrier_wait(shared_.bar_dq_full + kHalf, parity_);
      parity_ ^= 1;
      if (first) {
        ptx::store_bytes(g_block, s_block_, kConfig.dq_block_bytes());
      } else {
        ptx::reduce_add(g_block, s_block_, kConfig.dq_block_bytes());
      }
      ptx::bulk_commit();
      ptx::bulk_wait_read<0>();
      ptx::mbarrier_arrive(shared_.bar_dq_empty + kHalf);
      g_block += kConfig.dq_block_bytes() / 4;
    }
  }

  const BackwardParams& params_;
  const Shared& shared_;
  std::uint8_t* const s_block_;
  int parity_ = 0;
};

}  // namespace tessera::sm90
