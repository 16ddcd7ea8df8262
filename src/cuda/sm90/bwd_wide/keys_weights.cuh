// The consumer warpgroup of the kernel for dK and dV of wide heads that computes P and dV, see keys_consumer.cuh.
#pragma once

#include "cuda/sm90/bwd/score.cuh"
#include "cuda/sm90/bwd_wide/keys_consumer.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class WeightConsumer : KeysConsumer<kConfig, kMask, Element, kFeatures> {
  using Base = KeysConsumer<kConfig, kMask, Element, kFeatures>;
  using Base::params_, Base::shared_, Base::work_, Base::query_, Base::dout_, Base::buffer_, Base::kScores, Base::kHalf,
      Base::r_packed_, Base::r_gradient_, Base::r_scores_;
  using Score = BackwardScore<kConfig.tiles(), Element, kFeatures, false>;

 public:
  TESSERA_DEVICE WeightConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared, {params.dv, params.dv_strides, params.dim_v, 1.0F}), score_(params, 0) {}

  // Between two rounds S of a step and dV of the one before it are under way.
  TESSERA_DEVICE void run() {
    if (!start_tile()) {
      return;
    }
    if constexpr (!Base::kIssuesInOnePlace) {
      issue_scores();
    }
    bool behind = false;  // dV of a step is under way
    bool more = true;
    bool ended = false;  // it was the last one of a tile, which `rows` are of
    typename Base::Rows rows{};
    while (true) {
      if (Base::kIssuesInOnePlace && more) {
        issue_scores();
      }
      finish_dv(behind);
      ptx::pin(r_scores_);
      if (ended) {
        this->write(r_gradient_, rows);
        this->accumulate_ = false;
        if (!more) {
          return;
        }
      }
      if (this->left_ == 0) {
        this->release_rows(shared_.bar_key_empty, false);
      }
      // dV of a half of the queries runs beside the exponentials of the other half.
      compute_weights<0>();
      this->await_stage(shared_.bar_dout_full, shared_.douts, dout_, Base::kRowBarrier);
      if constexpr (kInHalves) {
        this->template issue_gradient<0, kHalf>(shared_.douts, dout_.slot);
        ptx::mbarrier_wait(shared_.bar_weight_empty + buffer_.slot, buffer_.parity ^ 1);
        compute_weights<1>();
      } else {
        ptx::mbarrier_wait(shared_.bar_weight_empty + buffer_.slot, buffer_.parity ^ 1);
      }
      hand_over();
      this->template issue_gradient<kInHalves ? kHalf : 0, 2 * kHalf>(shared_.douts, dout_.slot);
      behind = true;
      ended = this->left_ == 0;
      if (ended) {
        rows = this->rows();
        this->release_tile();
        more = start_tile();
      } else {
        this->advance();
        start_head();
      }
      if (!Base::kIssuesInOnePlace && more) {
        issue_scores();
      }
    }
  }

 private:
  static constexpr bool kInHalves = !Score::kChangesWeights;

  TESSERA_DEVICE bool start_tile() {
    if (!Base::start_tile()) {
      return false;
    }
    start_head();
    ptx::mbarrier_wait(shared_.bar_key_full, this->key_parity_);
    this->hold_rows(shared_.keys);
    this->release_rows(shared_.bar_key_empty, true);
    this->key_parity_ ^= 1;
    return true;
  }

  TESSERA_DEVICE void issue_scores() {
    this->await_stage(shared_.bar_query_full, shared_.queries, query_, Base::kRowBarrier);
    Base::issue_scores(shared_.keys, shared_.queries, query_.slot);
  }

  TESSERA_DEVICE void finish_dv(bool behind) {
    ptx::wgmma_wait<0>();
    ptx::pin(r_gradient_);
    if (behind) {
      this->release_stage(shared_.bar_dout_empty, dout_);
    }
  }

  TESSERA_DEVICE void start_head() {
    if constexpr (Score::kUsesHead) {
      score_.start_head(*work_, work_->key_head * params_.batch.group_size + this->member_);
    }
  }

  // P^T = 2^(scale S^T - LSE) in 16 bits, for dV; for dS the same or, where there is one, times a derivative.
  // In two halves of the queries, or all at once.
  template <int kPart>
  TESSERA_DEVICE void compute_weights() {
    const float2* const s_lse =
        reinterpret_cast<const float2*>(shared_.lse_log2 + query_.slot * kConfig.tile_q) + threadIdx.x % 4;
    const bool masked = kPart == 0 && this->is_masked();
    if constexpr (Score::kChangesWeights) {
      score_.compute_weights(r_packed_, r_handed_, r_scores_, *work_, this->first_query(), s_lse);
      if (masked) {
        zero_hidden();
      }
    } else {
      if (masked) {
        hide(r_scores_);
      }
#pragma unroll
      for (int i = kInHalves ? kPart * kScores / 8 : 0; i < (kInHalves ? (kPart + 1) * kScores / 8 : kScores / 4);
           ++i) {
        const float2 lse = s_lse[4 * i];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          r_packed_[2 * i + r] =
              ptx::pack<Element>(ptx::exp2(fmaf(r_scores_[4 * i + 2 * r], params_.scale_log2, -lse.x)),
                                 ptx::exp2(fmaf(r_scores_[4 * i + 2 * r + 1], params_.scale_log2, -lse.y)));
        }
      }
    }
  }

  TESSERA_DEVICE void hand_over() {
    uint4* const s_weights = shared_.weights + buffer_.slot * (kConfig.weight_bytes() / 16) + threadIdx.x % 128;
    const std::uint32_t (&r_words)[kScores / 2] = Score::Has::kHasDerivative ? r_handed_ : r_packed_;
#pragma unroll
    for (int i = 0; i < kScores / 8; ++i) {
      s_weights[128 * i] = make_uint4(r_words[4 * i], r_words[4 * i + 1], r_words[4 * i + 2], r_words[4 * i + 3]);
    }
    this->release_stage(shared_.bar_weight_full, buffer_);
    this->release_stage(shared_.bar_query_empty, query_);
  }

  TESSERA_DEVICE void zero_hidden() {
    float r_hidden[kScores] = {};
    hide(r_hidden);
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const bool hidden[2] = {r_hidden[i] != 0.0F, r_hidden[i + 1] != 0.0F};
      const std::uint32_t seen = (hidden[0] ? 0U : 0x0000FFFFU) | (hidden[1] ? 0U : 0xFFFF0000U);
      r_packed_[i / 2] &= seen;
      if constexpr (Score::Has::kHasDerivative) {
        r_handed_[i / 2] &= seen;
      }
    }
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

  Score score_;
  std::uint32_t r_handed_[kScores / 2];  // P times a derivative
};

}  // namespace tessera::sm90
