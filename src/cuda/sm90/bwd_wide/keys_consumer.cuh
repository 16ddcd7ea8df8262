// The consumer warpgroups of the kernel for dK and dV of wide heads. Rows are the 64 keys of a tile, columns the queries of a
// step:
//   WeightConsumer         S^T = K Q^T,   P^T = exp(scale S^T - LSE),     dV += P^T dO
//   ScoreGradientConsumer  dP^T = V dO^T, dS^T = P^T o (dP^T - delta),    dK += dS^T Q
// P goes from the first to the second in 16 bits through shared memory, times a derivative where a score program has one.
//
// Work is one stream of steps across tiles of keys. The first issues dV of a step and then S of the next one, the second dK and
// then dP: so a stage of Q or dO is in use for little more than a step. What one warpgroup computes runs beside the products of
// the other; and the products of half of the queries are issued before the other half is computed, since the two depend on each
// other and come into step.
#pragma once

#include "cuda/sm90/bwd_wide/keys_shared.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

// The tensor that a consumer writes.
struct KeyGradient {
  void* data;
  Strides strides;
  int dim;
  float scale;
};

// What both have in common.
template <BackwardKeysConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class KeysConsumer {
 public:
  using Shared = BackwardKeysShared<kConfig>;

 protected:
  static constexpr int kScores = kConfig.tile_q / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  static constexpr int kRowBarrier = 1;
  static constexpr int kHeld = kConfig.held_columns(kFeatures != 0) / 16;
  static constexpr bool kHoldsAll = 16 * kHeld == kConfig.head_dim;
  static constexpr int kHalf = kConfig.tile_q / 32;  // steps of depth of half of the queries
  // Whether the scores of a step are issued in one place, at the head of a round, or before the first round and at the end of each:
  // the same order, in a sixth less time to compile. Narrower heads, which take less in any case, were slower so.
  static constexpr bool kIssuesInOnePlace = kFeatures != 0 && kConfig.head_dim > 192;

  TESSERA_DEVICE KeysConsumer(const BackwardParams& params, const Shared& shared, const KeyGradient& gradient)
      : params_(params), shared_(shared), gradient_(gradient) {}

  // The rows of the gradient that a thread has a part of.
  struct Rows {
    std::uint16_t* g_row;
    bool stored[2];
  };

  // The next tile of keys that anything sees; false when there is none. Those before it get zeros.
  TESSERA_DEVICE bool start_tile() {
    while (true) {
      ptx::mbarrier_wait(shared_.bar_tile_full + slot_.slot, slot_.parity);
      work_ = &shared_.tiles[slot_.slot];
      if (work_->valid == 0) {
        return false;
      }
      if (work_->begin < work_->end) {
        break;
      }
      write_zeros();
      release_tile();
    }
    visit_ = work_->end;
    member_ = 0;
    left_ = (work_->end - work_->begin) * params_.batch.group_size;
    begin_ = work_->begin;
    find_whole_visits();
    advance();
    return true;
  }

  TESSERA_DEVICE void release_tile() { release_stage(shared_.bar_tile_empty, slot_); }

  // To the next step of the tile, from the last tile of queries down: under a causal mask blocks then read the same tiles at
  // the same time.
  TESSERA_DEVICE void advance() {
    --left_;
    if (visit_ == begin_) {
      visit_ = work_->end;
      ++member_;
    }
    --visit_;
  }

  TESSERA_DEVICE int first_query() const { return visit_ * kConfig.tile_q; }

  // Which visits hide nothing. Kept in registers: a step that asks the tile in shared memory waits a hundred cycles for it.
  TESSERA_DEVICE void find_whole_visits() {
    constexpr int kNone = 1 << 30;
    whole_begin_ = 0;
    if (kMask != MaskKind::dense) {
      whole_begin_ = tile::ceil_div(max(work_->first_key + kConfig.tile_k - 1 - work_->upper, 0), kConfig.tile_q);
    }
    if (work_->first_key + kConfig.tile_k > work_->keys) {  // keys that nothing sees
      whole_begin_ = kNone;
    }
    if (kMask == MaskKind::window) {
      const int last = work_->first_key - (kConfig.tile_q - 1) - work_->lower;  // of whole ones, their first query
      whole_end_ = last < 0 ? 0 : last / kConfig.tile_q + 1;
    }
  }

  TESSERA_DEVICE bool is_masked() const {
    return visit_ < whole_begin_ || (kMask == MaskKind::window && visit_ >= whole_end_);
  }

  // The first columns of K or V as fragments of the first operand. Shared memory is read as long as products take; these are read
  // once.
  TESSERA_DEVICE void hold_rows(const std::uint8_t* s_rows) {
    const int row = tile::fragment_row();
    const std::uint32_t s_row = ptx::fresh(ptx::shared_address(s_rows) + row * 128 + threadIdx.x % 4 * 4);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = (k % 4 * 2 + i / 2) ^ (row % 8);
        r_held_[4 * k + i] = ptx::load_word(s_row + k / 4 * kConfig.tile_k * 128 + i % 2 * 8 * 128 + chunk * 16);
      }
    }
  }

  // S^T or dP^T: both operands have their depth contiguous.
  TESSERA_DEVICE void issue_scores(const std::uint8_t* s_a, const std::uint8_t* s_stages, int stage) {
    using Product = ptx::Wgmma<kConfig.tile_q, Element>;
    const std::uint32_t s_rows = ptx::fresh(ptx::shared_address(s_a));
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.head_dim / 16; ++k) {
      const std::uint64_t b = ptx::depth_major(s_stage, k / 4 * kConfig.tile_q * 128 + k % 4 * 32);
      if (k < kHeld) {
        if (k == 0) {
          Product::rs_first(r_scores_, r_held_, b);
        } else {
          Product::template rs<0>(r_scores_, r_held_ + 4 * k, b, true);
        }
      } else {
        Product::ss(r_scores_, ptx::depth_major(s_rows, k / 4 * kConfig.tile_k * 128 + k % 4 * 32), b);
      }
    }
    ptx::wgmma_commit();
  }

  // dV += P^T dO or dK += dS^T Q, of the queries of some steps of depth.
  template <int kFrom, int kTo>
  TESSERA_DEVICE void issue_gradient(const std::uint8_t* s_stages, int stage) {
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = kFrom; k < kTo; ++k) {
      ptx::Wgmma<kConfig.head_dim, Element>::rs(r_gradient_, r_packed_ + 4 * k,
                                                ptx::width_major(s_stage, kConfig.tile_q * 128, k * 2048),
                                                accumulate_ || k > 0);
    }
    ptx::wgmma_commit();
    accumulate_ = true;
  }

  // Waits for a stage of Q or dO. Rows behind the last query, which in ragged batches are of the next sequence, are cleared by
  // each warpgroup for itself.
  TESSERA_DEVICE void await_stage(std::uint64_t* bar_full, std::uint8_t* s_stages,
                                  const tile::RingPosition<Shared::kStages>& stage, int barrier) const {
    ptx::mbarrier_wait(bar_full + stage.slot, stage.parity);
    if (params_.batch.ragged != 0) {
      const int rows = work_->queries - first_query();
      if (rows < kConfig.tile_q) {
        tile::clear_rows<kConfig.tile_q, kConfig.sub_tiles()>(s_stages + stage.slot * kConfig.query_bytes(), rows,
                                                              barrier);
      }
    }
  }

  // K or V of the tile, after the last step or, where registers hold all of it, before the first.
  TESSERA_DEVICE static void release_rows(std::uint64_t* bar_empty, bool held) {
    if (held == kHoldsAll) {
      ptx::mbarrier_arrive(bar_empty);
    }
  }

  // What threads have read or written themselves, by every thread: racecheck does not see that __syncwarp() orders what a warp
  // did before one arrival of it.
  template <int kSlots>
  TESSERA_DEVICE void release_stage(std::uint64_t* bar, tile::RingPosition<kSlots>& stage) const {
    ptx::mbarrier_arrive(bar + stage.slot);
    stage.advance();
  }

  TESSERA_DEVICE Rows rows() const {
    const int row = work_->first_key + tile::fragment_row();
    return {static_cast<std::uint16_t*>(gradient_.data) + work_->batch * gradient_.strides.batch +
                static_cast<std::int64_t>(work_->key_row + row) * gradient_.strides.token +
                work_->key_head * gradient_.strides.head,
            {row < work_->stored_keys, row + 8 < work_->stored_keys}};
  }

  TESSERA_DEVICE void write_zeros() const {
    const Rows first = rows();
    const std::int64_t row = work_->first_key + tile::fragment_row();
    std::uint16_t* const g_tile = first.g_row - row * gradient_.strides.token;
    const int words = gradient_.dim / 8;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x % 128); i < kConfig.tile_k * words; i += 128) {
      const int key = work_->first_key + i / words;
      if (key < work_->stored_keys) {
        *reinterpret_cast<uint4*>(g_tile + key * gradient_.strides.token + i % words * 8) = uint4{};
      }
    }
  }

  TESSERA_DEVICE void write(const float (&r_values)[kOutputs], const Rows& rows) const {
    std::uint16_t* const g_rows[2] = {rows.g_row, rows.g_row + 8 * gradient_.strides.token};
    const float factor[2] = {gradient_.scale, gradient_.scale};
    tile::store_rows<Element, true>(r_values, factor, g_rows, rows.stored, gradient_.dim);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  const KeyGradient gradient_;

  const BackwardTile* work_ = nullptr;
  int visit_ = 0;   // the tile of queries of the latest step
  int member_ = 0;  // of the key head's group, whose queries they are
  int left_ = 0;    // steps of the tile behind it
  int begin_ = 0;   // of the tile's visits, the first
  int whole_begin_ = 0, whole_end_ = 0;
  bool accumulate_ = false;
  int key_parity_ = 0;
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kStages> query_, dout_;
  tile::RingPosition<Shared::kWeightBuffers> buffer_;

  std::uint32_t r_packed_[kScores / 2];  // P or dS of a step, whose product for the gradient is to come
  float r_gradient_[kOutputs];
  float r_scores_[kScores];  // S or dP
  std::uint32_t r_held_[4 * kHeld];
};

}  // namespace tessera::sm90
