// The producer warpgroup of the backward kernel: one warp loads, two add dQ to memory.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/sm90/bwd/tickets.cuh"

namespace tessera::sm90 {

// One thread that hands out tiles of keys and keeps the copy engine busy.
template <BackwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures>
class BackwardLoader {
 public:
  using Shared = BackwardShared<kConfig, kFeatures>;
  using Forms = typename Shared::Forms;

  TESSERA_DEVICE BackwardLoader(const BackwardParams& params, const Shared& shared)
      : params_(params), shared_(shared), tickets_(params) {}

  TESSERA_DEVICE void run() {
    for (int round = 0;; ++round) {
      const BackwardTile& work = next_tile();
      if (work.valid == 0) {
        return;
      }
      keys_loaded_ = false;
      if (round == 0) {
        load_keys(work);
      }
      if constexpr (kMask == MaskKind::listed) {
        load_terms(work);
      } else {
        const BackwardVisits<kMask> visits(work);
        for (int member = 0; member < params_.batch.group_size; ++member) {
          const int start = visits.start(member, params_.batch.group_size);
          for (int step = 0; step < visits.count(); ++step) {
            load_step(work, member, visits.at(start, step));
          }
        }
      }
      if (!keys_loaded_) {
        load_keys(work);
      }
    }
  }

 private:
  static constexpr int kColumns = BackwardConfig::kSubTileColumns;

  // What a tile of keys visits under a listed mask, and word of it for the consumers. The next term is on its way from memory
  // meanwhile.
  TESSERA_DEVICE void load_terms(const BackwardTile& work) {
    if (work.begin == work.end) {
      return;
    }
    ListedTerm next = params_.listed.terms[work.begin];
    for (int n = work.begin; n < work.end; ++n) {
      const ListedTerm term = next;
      next = params_.listed.terms[min(n + 1, work.end - 1)];
      ptx::mbarrier_wait(shared_.bar_query_empty + stage_.slot, stage_.parity ^ 1);
      shared_.visits[stage_.slot] = {term.tile, term.bits};
      load_step(work, term.member, term.tile);
    }
  }

  // Room for a tile's first step is free while the tile before is at its last one, that for keys and values behind its last dQ.
  TESSERA_DEVICE void load_step(const BackwardTile& work, int member, int query_tile) {
    load_queries(params_.q, shared_.queries, shared_.bar_query_full, shared_.bar_query_empty, work, member, query_tile);
    load_queries(params_.dout, shared_.douts, shared_.bar_dout_full, shared_.bar_dout_empty, work, member, query_tile);
    load_statistics(work, member, query_tile);
    stage_.advance();
    if (!keys_loaded_) {
      load_keys(work);
    }
  }

  TESSERA_DEVICE void load_keys(const BackwardTile& work) {
    ptx::mbarrier_wait(shared_.bar_keys_empty, key_parity_ ^ 1);
    load_keys(params_.k, shared_.keys, shared_.bar_key_full, work);
    load_keys(params_.v, shared_.values, shared_.bar_value_full, work);
    keys_loaded_ = true;
    key_parity_ ^= 1;
  }

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

  TESSERA_DEVICE void load_queries(const TensorMap& map, std::uint8_t* s_stages, std::uint64_t* bar_full,
                                   std::uint64_t* bar_empty, const BackwardTile& work, int member,
                                   int query_tile) const {
    ptx::mbarrier_wait(bar_empty + stage_.slot, stage_.parity ^ 1);
    std::uint64_t* bar = bar_full + stage_.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.query_bytes());
    const int row = query_tile * kConfig.tile_q;
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage_.slot * kConfig.query_bytes() + x * kConfig.tile_q * 128, map, bar, x * kColumns,
                    work.query_row + row, work.key_head * params_.batch.group_size + member, work.batch);
    }
  }

  // There is room for those of one step: they are used at its beginning alone.
  TESSERA_DEVICE void load_statistics(const BackwardTile& work, int member, int query_tile) {
    constexpr int kBytes = (Forms::kDeltaParts ? kConfig.parts_bytes() : 0) +
                           (Forms::kReadsLse + Forms::kReadsDelta) * kConfig.statistics_bytes();
    ptx::mbarrier_wait(shared_.bar_parts_empty, parts_parity_ ^ 1);
    parts_parity_ ^= 1;
    ptx::mbarrier_arrive_expect(shared_.bar_parts_full, kBytes);
    const std::int64_t row = statistics_row(work, member) + query_tile * kConfig.tile_q;
    if constexpr (Forms::kDeltaParts) {
      ptx::copy_bytes(shared_.parts, params_.parts + row, kConfig.parts_bytes(), shared_.bar_parts_full);
    }
    if constexpr (Forms::kReadsLse) {
      ptx::copy_bytes(shared_.lse_log2, params_.lse_log2 + row, kConfig.statistics_bytes(), shared_.bar_parts_full);
    }
    if constexpr (Forms::kReadsDelta) {
      ptx::copy_bytes(shared_.delta, params_.delta + row, kConfig.statistics_bytes(), shared_.bar_parts_full);
    }
  }

  TESSERA_DEVICE static std::int32_t statistics_row(const BackwardTile& work, int member) {
    return work.statistics_row + member * work.statistics_stride;
  }

  const BackwardParams& params_;
  const Shared& shared_;
  BackwardTickets<kConfig, kMask, kFeatures> tickets_;
  bool keys_loaded_ = false;  // and values, of the tile at hand
  int key_parity_ = 0;
  int parts_parity_ = 0;
  tile::RingPosition<BackwardConfig::kTileSlots> slot_;
  tile::RingPosition<kConfig.stages> stage_;
};

// Adds dQ of every other step to memory, when it is its turn. There are two of these warps, so that one can pass its turn on,
// which takes memory longer than a step, while the other adds.
template <BackwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures>
class DqWriter {
 public:
  using Shared = BackwardShared<kConfig, kFeatures>;

  TESSERA_DEVICE DqWriter(const BackwardParams& params, const Shared& shared, int writer)
      : params_(params), shared_(shared), writer_(writer) {}

  TESSERA_DEVICE void run() {
    tile::RingPosition<BackwardConfig::kTileSlots> slot;
    while (true) {
      const BackwardTile& work = shared_.await_tile(slot);
      if (work.valid == 0) {
        break;
      }
      if (threadIdx.x % 32 == 0) {
        add_steps(work);
      }
      shared_.release_tile(slot);
    }
    ptx::bulk_wait<0>();
  }

 private:
  TESSERA_DEVICE void add_steps(const BackwardTile& work) {
    if constexpr (kMask == MaskKind::listed) {
      add_terms(work);
      return;
    }
    const BackwardVisits<kMask> visits(work);
    const BackwardTurns<kConfig, kMask> turns(work, params_.order);
    for (int member = 0; member < params_.batch.group_size; ++member) {
      const int start = visits.start(member, params_.batch.group_size);
      for (int step = 0; step < visits.count(); ++step) {
        if (step_ == writer_) {
          const int query_tile = visits.at(start, step);
          const std::int32_t row = work.statistics_row + member * work.statistics_stride + query_tile * kConfig.tile_q;
          if (params_.order.turns == nullptr) {
            add(row, false);
          } else {
            add_in_turn(row, turns.of(query_tile));
          }
        }
        step_ ^= 1;
      }
    }
  }

  TESSERA_DEVICE void add_terms(const BackwardTile& work) {
    for (int n = work.begin; n < work.end; ++n) {
      if (step_ == writer_) {
        const ListedTerm term = params_.listed.terms[n];
        const std::int32_t row =
            work.statistics_row + term.member * work.statistics_stride + term.tile * kConfig.tile_q;
        if (params_.order.turns == nullptr) {
          add(row, false);
        } else {
          add_in_turn(row, term.turn);
        }
      }
      step_ ^= 1;
    }
  }

  TESSERA_DEVICE void add_in_turn(std::int32_t row, int turn) {
    std::int32_t* const g_turn = params_.order.turns + row / kConfig.tile_q;
    ptx::wait_until_equal(g_turn, turn);
    add(row, turn == 0);
    ptx::bulk_wait<0>();
    ptx::release_store(g_turn, turn + 1);
  }

  // The first term of a tile of queries is stored: memory holds anything before it.
  TESSERA_DEVICE void add(std::int32_t row, bool first) {
    float* const g_sum = params_.dq_sum + static_cast<std::int64_t>(row) * kConfig.dq_columns();
    const std::uint8_t* const s_dq = shared_.dq + writer_ * 2 * kConfig.dq_half_bytes();
    ptx::mbarrier_wait(shared_.bar_dq_full + writer_, parity_);
    parity_ ^= 1;
    if (first) {
      ptx::store_bytes(g_sum, s_dq, 2 * kConfig.dq_half_bytes());
    } else {
      ptx::reduce_add(g_sum, s_dq, 2 * kConfig.dq_half_bytes());
    }
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
    ptx::mbarrier_arrive(shared_.bar_dq_empty + writer_);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  const int writer_;
  int step_ = 0;  // whose turn of the two it is
  int parity_ = 0;
};

}  // namespace tessera::sm90
