// The consumer warpgroup of the kernel for dK and dV of wide heads that computes P and dV, see keys_consumer.cuh.
#pragma once

#include "cuda/sm90/bwd_wide/keys_consumer.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig, MaskKind kMask, class Element>
class WeightConsumer : KeysConsumer<kConfig, kMask, Element> {
  using Base = KeysConsumer<kConfig, kMask, Element>;
  using Base::params_, Base::shared_, Base::work_, Base::query_, Base::dout_, Base::buffer_, Base::kScores,
      Base::r_packed_, Base::r_gradient_;

 public:
  TESSERA_DEVICE WeightConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared, {params.dv, params.dv_strides, params.dim_v, 1.0F}) {}

  TESSERA_DEVICE void run() {
    if (!start_tile()) {
      return;
    }
    step<true, true>();
    while (true) {
      const bool ends = this->left_ == 0;
      typename Base::Rows rows{};
      if (ends) {
        rows = this->rows();
        this->release_tile();
        if (!start_tile()) {
          finish();
          this->write(r_gradient_, rows);
          return;
        }
      } else {
        this->advance();
      }
      if (this->is_masked()) {
        step<true, false>();
      } else {
        step<false, false>();
      }
      if (ends) {
        this->write(r_gradient_, rows);
        this->accumulate_ = false;
      }
    }
  }

 private:
  TESSERA_DEVICE bool start_tile() {
    if (!Base::start_tile()) {
      return false;
    }
    ptx::mbarrier_wait(shared_.bar_key_full, this->key_parity_);
    this->key_parity_ ^= 1;
    return true;
  }

  // The weights of a step, and dV of the one before it.
  template <bool kMasked, bool kFirst>
  TESSERA_DEVICE void step() {
    float r_scores[kScores];
    const int rows = work_->queries - this->first_query();
    this->await_stage(shared_.bar_query_full, shared_.queries, query_, rows, Base::kRowBarrier);
    this->issue_scores(r_scores, shared_.keys, shared_.queries, query_.slot);
    if constexpr (!kFirst) {
      issue_dv();
      ptx::wgmma_wait<1>();
    } else {
      ptx::wgmma_wait<0>();
    }
    ptx::pin(r_scores);
    if (this->left_ == 0) {
      this->release(shared_.bar_key_empty);
    }
    if constexpr (kMasked) {
      hide(r_scores);
    }
    compute_weights(r_scores);
    this->release_stage(shared_.bar_query_empty, query_);
    hand_over(r_scores);
    if constexpr (!kFirst) {
      finish_dv();
    }
    tile::round_to<Element>(r_packed_, r_scores);
    dout_rows_ = rows;
  }

  TESSERA_DEVICE void finish() {
    issue_dv();
    finish_dv();
  }

  TESSERA_DEVICE void issue_dv() {
    this->await_stage(shared_.bar_dout_full, shared_.douts, dout_, dout_rows_, Base::kRowBarrier);
    this->issue_gradient(shared_.douts, dout_.slot);
  }
  TESSERA_DEVICE void finish_dv() {
    ptx::wgmma_wait<0>();
    ptx::pin(r_gradient_);
    this->release_stage(shared_.bar_dout_empty, dout_);
  }

  // P^T = 2^(scale S^T - LSE).
  TESSERA_DEVICE void compute_weights(float (&r_scores)[kScores]) const {
    const float2* const s_lse =
        reinterpret_cast<const float2*>(shared_.lse_log2 + query_.slot * kConfig.tile_q) + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 lse = s_lse[4 * i];
      r_scores[4 * i] = ptx::exp2(fmaf(r_scores[4 * i], params_.scale_log2, -lse.x));
      r_scores[4 * i + 1] = ptx::exp2(fmaf(r_scores[4 * i + 1], params_.scale_log2, -lse.y));
      r_scores[4 * i + 2] = ptx::exp2(fmaf(r_scores[4 * i + 2], params_.scale_log2, -lse.x));
      r_scores[4 * i + 3] = ptx::exp2(fmaf(r_scores[4 * i + 3], params_.scale_log2, -lse.y));
    }
  }

  TESSERA_DEVICE void hand_over(const float (&r_weights)[kScores]) {
    ptx::mbarrier_wait(shared_.bar_weight_empty + buffer_.slot, buffer_.parity ^ 1);
    float4* const s_weights = shared_.weights + buffer_.slot * (kConfig.weight_bytes() / 16) + threadIdx.x % 128;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      s_weights[128 * i] =
          make_float4(r_weights[4 * i], r_weights[4 * i + 1], r_weights[4 * i + 2], r_weights[4 * i + 3]);
    }
    this->release_stage(shared_.bar_weight_full, buffer_);
  }

  // Key k sees queries k - upper .. k - lower.
  TESSERA_DEVICE void hide(float (&r_scores)[kScores]) const {
    constexpr int kEverything = 1 << 29;
    int first[2];
    int last[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int key = work_->first_key + tile::fragment_row() + 8 * r;
      const int column = this->first_query() + tile::fragment_column();
      first[r] = kMask == MaskKind::dense ? -kEverything : key - work_->upper - column;
      last[r] = kMask == MaskKind::window ? key - work_->lower - column : kEverything;
      first[r] = key < work_->keys ? first[r] : kEverything;
    }
    tile::hide_scores<true>(r_scores, first, last);
  }

  int dout_rows_ = 0;  // of the step whose dV is to come, that belong to the sequence
};

}  // namespace tessera::sm90
