// A consumer warpgroup of the kernel for dQ of wide heads: 64 rows of every tile of queries.
//
//   S = Q K^T,  P = exp(scale S - LSE),  dP = dO V^T,  dS = P o (dP - delta),  dQ += dS K
// dQ of a key tile and S of the next one are issued together, dP when dQ is complete. The exponentials run beside this
// warpgroup's dP, the rest of the arithmetic beside products of the other warpgroup; dQ of half of the keys is issued before dS
// of the other half is computed.
#pragma once

#include "cuda/sm90/bwd_wide/queries_score.cuh"
#include "cuda/sm90/bwd_wide/queries_shared.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

template <BackwardQueriesConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class BackwardQueriesConsumer {
 public:
  using Shared = BackwardQueriesShared<kConfig>;
  using Score = BackwardQueriesScore<kConfig, Element, kFeatures>;

  TESSERA_DEVICE BackwardQueriesConsumer(const BackwardQueriesParams& params, const Shared& shared, int warpgroup)
      : params_(params), shared_(shared), warpgroup_(warpgroup), score_(params, warpgroup) {}

  TESSERA_DEVICE void run() {
    while (read_tile()) {
      start_tile();
      walk_tile();
      write_gradient();
      release_stage(shared_.bar_tile_empty, tile_);
      parity_ ^= 1;
    }
  }

 private:
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  static constexpr int kRowBarrier = 1;

  TESSERA_DEVICE bool read_tile() {
    ptx::mbarrier_wait(shared_.bar_tile_full + tile_.slot, tile_.parity);
    work_ = &shared_.tiles[tile_.slot];
    return work_->valid != 0;
  }

  // The key tiles that these 64 rows see, and those of them that are hidden in part.
  TESSERA_DEVICE void start_tile() {
    const int first_row = work_->first_query + warpgroup_ * 64;
    const int last_row = min(first_row + 64, work_->queries) - 1;
    const int first_key = kMask == MaskKind::window ? max(first_row + work_->lower, 0) : 0;
    const int end_key = kMask == MaskKind::dense ? work_->keys : min(work_->keys, last_row + work_->upper + 1);
    begin_ = max(first_key / kConfig.tile_k, work_->begin);
    end_ = last_row < first_row || end_key <= first_key ? begin_
                                                        : min(tile::ceil_div(end_key, kConfig.tile_k), work_->end);
    begin_ = min(begin_, end_);
    first_masked_ = max(0, kMask == MaskKind::dense ? work_->keys : min(work_->keys, first_row + work_->upper + 1)) /
                    kConfig.tile_k;
    last_unmasked_ =
        kMask == MaskKind::window ? tile::ceil_div(max(0, first_row + 63 + work_->lower), kConfig.tile_k) : 0;
    read_statistics(first_row);
    score_.start_tile(*work_);
  }

  TESSERA_DEVICE void read_statistics(int first_row) {
    const int line =
        params_.batch.sequences == nullptr ? work_->batch * params_.batch.heads_q + work_->head : work_->head;
    const std::int64_t first = static_cast<std::int64_t>(line) * params_.line_rows + work_->first_line;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + tile::fragment_row() + 8 * r;
      const bool inside = row < work_->queries;
      lse_log2_[r] = inside ? params_.lse_log2[first + row] : 0.0F;
      delta_[r] = inside ? params_.delta[first + row] : 0.0F;
    }
  }

  TESSERA_DEVICE void walk_tile() {
#pragma unroll
    for (float& value : r_dq_) {
      value = 0.0F;
    }
    ptx::mbarrier_wait(shared_.bar_query_full + warpgroup_, parity_);
    int j = work_->end - 1;
    for (; j >= max(end_, work_->begin); --j) {
      skip();
    }
    if (j >= begin_) {
      clear_hidden_keys(j);
      j = walk_keys(j);
    } else {
      ptx::mbarrier_wait(shared_.bar_dout_full + warpgroup_, parity_);
      release(shared_.bar_query_empty + warpgroup_);
      release(shared_.bar_dout_empty + warpgroup_);
    }
    for (; j >= work_->begin; --j) {
      skip();
    }
  }

  // A key tile that the other warpgroup alone sees.
  TESSERA_DEVICE void skip() {
    ptx::mbarrier_wait(shared_.bar_key_full + key_.slot, key_.parity);
    release_stage(shared_.bar_key_empty, key_);
    dq_key_.advance();
    ptx::mbarrier_wait(shared_.bar_value_full + value_.slot, value_.parity);
    release_stage(shared_.bar_value_empty, value_);
  }

  TESSERA_DEVICE bool is_masked(int j) const { return j >= first_masked_ || j < last_unmasked_; }

  // From key tile j down to the first one that is seen; the one before it.
  TESSERA_DEVICE int walk_keys(int j) {
    float r_scores[kScores];
    bool behind = false;
    await_keys();
    issue_next_scores(r_scores);
    ptx::mbarrier_wait(shared_.bar_dout_full + warpgroup_, parity_);
    while (true) {
      // S of this key tile and dQ of the one before it are under way. dP waits for dQ, so that dS and dP are not in registers at
      // the same time.
      float r_dscores[kScores];
      ptx::wgmma_wait<1>();
      ptx::pin(r_dq_);
      if (behind) {
        release_stage(shared_.bar_key_empty, dq_key_);
      }
      issue_dscores(r_dscores);
      ptx::wgmma_wait<1>();
      ptx::pin(r_scores);
      if (j == begin_) {
        release(shared_.bar_query_empty + warpgroup_);
      }
      const bool masked = is_masked(j);
      if (!Score::kChangesWeights && masked) {
        hide(r_scores, j, -__builtin_huge_valf());
      }
      compute_weights(r_scores, j);
      if (Score::kChangesWeights && masked) {
        hide(r_scores, j, 0.0F);
      }
      // Not needed before dP; but without a branch in between the compiler puts the exponentials behind the wait for dP.
      if (j > begin_) {
        await_keys();
      }
      ptx::wgmma_wait<0>();
      ptx::pin(r_dscores);
      release_stage(shared_.bar_value_empty, value_);
      if (masked) {
        zero_hidden(r_scores, r_dscores);
      }
      compute_score_gradients<0, kScores / 4>(r_scores, r_dscores);
      issue_dq<0, kConfig.tile_k / 32>();
      compute_score_gradients<kScores / 4, kScores / 2>(r_scores, r_dscores);
      issue_dq<kConfig.tile_k / 32, kConfig.tile_k / 16>();
      behind = true;
      --j;
      if (j < begin_) {
        break;
      }
      issue_next_scores(r_scores);
    }
    release(shared_.bar_dout_empty + warpgroup_);
    ptx::wgmma_wait<0>();
    ptx::pin(r_dq_);
    release_stage(shared_.bar_key_empty, dq_key_);
    return j;
  }

  TESSERA_DEVICE void issue_dscores(float (&r_dscores)[kScores]) {
    ptx::mbarrier_wait(shared_.bar_value_full + value_.slot, value_.parity);
    issue_scores(r_dscores, shared_.douts, shared_.values + value_.slot * kConfig.key_bytes());
  }
  TESSERA_DEVICE void await_keys() const { ptx::mbarrier_wait(shared_.bar_key_full + key_.slot, key_.parity); }
  TESSERA_DEVICE void issue_next_scores(float (&r_scores)[kScores]) {
    issue_scores(r_scores, shared_.queries, shared_.keys + key_.slot * kConfig.key_bytes());
    key_.advance();
  }

  // S or dP: both operands have their depth contiguous.
  TESSERA_DEVICE void issue_scores(float (&r_result)[kScores], const std::uint8_t* s_halves,
                                   const std::uint8_t* s_stage) const {
    using Product = ptx::Wgmma<kConfig.tile_k, Element>;
    const std::uint32_t s_rows = ptx::fresh(ptx::shared_address(s_halves) + warpgroup_ * kConfig.half_bytes());
    const std::uint32_t s_columns = ptx::fresh(ptx::shared_address(s_stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.head_dim / 16; ++k) {
      const std::uint64_t a = ptx::depth_major(s_rows, k / 4 * 64 * 128 + k % 4 * 32);
      const std::uint64_t b = ptx::depth_major(s_columns, k / 4 * kConfig.tile_k * 128 + k % 4 * 32);
      if (k == 0) {
        Product::ss_first(r_result, a, b);
      } else {
        Product::ss(r_result, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  template <int kFrom, int kTo>
  TESSERA_DEVICE void issue_dq() {
    const std::uint32_t s_keys = ptx::fresh(ptx::shared_address(shared_.keys) + dq_key_.slot * kConfig.key_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = kFrom; k < kTo; ++k) {
      ptx::Wgmma<kConfig.head_dim, Element>::rs(r_dq_, r_packed_ + 4 * k,
                                                ptx::width_major(s_keys, kConfig.tile_k * 128, k * 2048), true);
    }
    ptx::wgmma_commit();
  }

  // Products to P, times the derivative of a score program that has one.
  TESSERA_DEVICE void compute_weights(float (&r_scores)[kScores], int j) const {
    if constexpr (Score::kChangesWeights) {
      score_.compute_weights(r_scores, *work_, j * kConfig.tile_k, lse_log2_);
    } else {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[i] = ptx::exp2(fmaf(r_scores[i], params_.scale_log2, -lse_log2_[i / 2 % 2]));
      }
    }
  }

  // dP where nothing is seen, which may be anything.
  TESSERA_DEVICE static void zero_hidden(const float (&r_weights)[kScores], float (&r_dscores)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      r_dscores[i] = r_weights[i] == 0.0F ? 0.0F : r_dscores[i];
    }
  }

  // Pairs of dS, without the scale, which dQ gets at the end.
  template <int kFrom, int kTo>
  TESSERA_DEVICE void compute_score_gradients(const float (&r_weights)[kScores], const float (&r_dscores)[kScores]) {
#pragma unroll
    for (int i = kFrom; i < kTo; ++i) {
      const float delta = delta_[i % 2];
      r_packed_[i] = ptx::pack<Element>(r_weights[2 * i] * (r_dscores[2 * i] - delta),
                                        r_weights[2 * i + 1] * (r_dscores[2 * i + 1] - delta));
    }
  }

  TESSERA_DEVICE void hide(float (&r_scores)[kScores], int j, float hidden) const {
    const int first_key = j * kConfig.tile_k + tile::fragment_column();
    int first[2];
    int last[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = work_->first_query + warpgroup_ * 64 + tile::fragment_row() + 8 * r;
      last[r] = (kMask == MaskKind::dense ? work_->keys - 1 : min(work_->keys - 1, query + work_->upper)) - first_key;
      first[r] = query + work_->lower - first_key;
    }
    tile::hide_scores<kMask == MaskKind::window>(r_scores, first, last, hidden);
  }

  // Rows of K behind the keys of a sequence, which only tables of sequences leave in a tile, and only in the last one.
  TESSERA_DEVICE void clear_hidden_keys(int j) {
    const int rows = work_->keys - j * kConfig.tile_k;
    if (params_.batch.sequences == nullptr || rows >= kConfig.tile_k) {
      return;
    }
    ptx::mbarrier_wait(shared_.bar_key_full + key_.slot, key_.parity);
    tile::clear_rows<kConfig.tile_k, kConfig.sub_tiles()>(shared_.keys + key_.slot * kConfig.key_bytes(), rows,
                                                          kRowBarrier + warpgroup_);
  }

  // By every thread: racecheck does not see that __syncwarp() orders what a warp did before one arrival of it.
  TESSERA_DEVICE static void release(std::uint64_t* bar_empty) { ptx::mbarrier_arrive(bar_empty); }
  template <int kStages>
  TESSERA_DEVICE static void release_stage(std::uint64_t* bar_empty, tile::RingPosition<kStages>& stage) {
    release(bar_empty + stage.slot);
    stage.advance();
  }

  TESSERA_DEVICE void write_gradient() const {
    const int row = work_->first_query + warpgroup_ * 64 + tile::fragment_row();
    std::uint16_t* const g_row = static_cast<std::uint16_t*>(params_.dq) + work_->batch * params_.dq_strides.batch +
                                 static_cast<std::int64_t>(work_->query_row + row) * params_.dq_strides.token +
                                 work_->head * params_.dq_strides.head;
    std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * params_.dq_strides.token};
    const float factor[2] = {params_.scale, params_.scale};
    const bool stored[2] = {row < work_->queries, row + 8 < work_->queries};
    tile::store_rows<Element, true>(r_dq_, factor, g_rows, stored, params_.dim_qk);
  }

  const BackwardQueriesParams& params_;
  const Shared& shared_;
  const int warpgroup_;
  Score score_;

  const ForwardTile* work_ = nullptr;
  int begin_ = 0, end_ = 0;  // key tiles that this warpgroup sees
  int first_masked_ = 0;     // those from here on are hidden in part by the mask's upper end
  int last_unmasked_ = 0;    // those before it are hidden in part by the lower end
  int parity_ = 0;           // of Q and dO
  float lse_log2_[2], delta_[2];
  tile::RingPosition<Shared::kTileSlots> tile_;
  tile::RingPosition<Shared::kKeyStages> key_, dq_key_;  // of the scores, and of dQ
  tile::RingPosition<Shared::kValueStages> value_;

  std::uint32_t r_packed_[kScores / 2];  // dS of a key tile, whose product for dQ is to come
  float r_dq_[kOutputs];
};

}  // namespace tessera::sm90
