// The consumer warpgroup of the kernel for dK and dV of wide heads that computes dS and dK, see keys_consumer.cuh.
#pragma once

#include "cuda/sm90/bwd_wide/keys_consumer.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class ScoreGradientConsumer : KeysConsumer<kConfig, kMask, Element, kFeatures> {
  using Base = KeysConsumer<kConfig, kMask, Element, kFeatures>;
  using Base::params_, Base::shared_, Base::work_, Base::query_, Base::dout_, Base::buffer_, Base::kScores, Base::kHalf,
      Base::r_packed_, Base::r_gradient_, Base::r_scores_;

 public:
  TESSERA_DEVICE ScoreGradientConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared, {params.dk, params.dk_strides, params.dim_qk, params.scale}) {}

  // Between two rounds dK of a step and dP of the next one are under way.
  TESSERA_DEVICE void run() {
    if (!start_tile()) {
      return;
    }
    if constexpr (!Base::kIssuesInOnePlace) {
      issue_dweights();
    }
    bool behind = false;
    bool more = true;
    bool ended = false;
    typename Base::Rows rows{};
    while (true) {
      if (Base::kIssuesInOnePlace && more) {
        issue_dweights();
      }
      if (ended) {
        ptx::wgmma_wait<0>();
      } else {
        ptx::wgmma_wait<1>();
      }
      ptx::pin(r_gradient_);
      if (behind) {
        this->release_stage(shared_.bar_query_empty, query_);
      }
      ptx::wgmma_wait<0>();
      ptx::pin(r_scores_);
      if (ended) {
        this->write(r_gradient_, rows);
        this->accumulate_ = false;
        if (!more) {
          return;
        }
      }
      if (this->left_ == 0) {
        this->release_rows(shared_.bar_value_empty, false);
      }
      subtract_delta();
      this->release_stage(shared_.bar_dout_empty, dout_);
      ptx::mbarrier_wait(shared_.bar_weight_full + buffer_.slot, buffer_.parity);
      if (this->is_masked()) {
        zero_hidden();
      }
      this->await_stage(shared_.bar_query_full, shared_.queries, query_, kRowBarrier);
      compute_score_gradients<0, kHalf>();
      this->template issue_gradient<0, kHalf>(shared_.queries, query_.slot);
      compute_score_gradients<kHalf, 2 * kHalf>();
      this->release_stage(shared_.bar_weight_empty, buffer_);
      this->template issue_gradient<kHalf, 2 * kHalf>(shared_.queries, query_.slot);
      behind = true;
      ended = this->left_ == 0;
      if (ended) {
        rows = this->rows();
        this->release_tile();
        more = start_tile();
      } else {
        this->advance();
      }
      if (!Base::kIssuesInOnePlace && more) {
        issue_dweights();
      }
    }
  }

 private:
  static constexpr int kRowBarrier = Base::kRowBarrier + 1;

  TESSERA_DEVICE bool start_tile() {
    if (!Base::start_tile()) {
      return false;
    }
    ptx::mbarrier_wait(shared_.bar_value_full, this->key_parity_);
    this->hold_rows(shared_.values);
    this->release_rows(shared_.bar_value_empty, true);
    this->key_parity_ ^= 1;
    return true;
  }

  TESSERA_DEVICE void issue_dweights() {
    this->await_stage(shared_.bar_dout_full, shared_.douts, dout_, kRowBarrier);
    this->issue_scores(shared_.values, shared_.douts, dout_.slot);
  }

  TESSERA_DEVICE void subtract_delta() {
    const float2* const s_delta =
        reinterpret_cast<const float2*>(shared_.delta + dout_.slot * kConfig.tile_q) + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 delta = s_delta[4 * i];
      r_scores_[4 * i] -= delta.x;
      r_scores_[4 * i + 1] -= delta.y;
      r_scores_[4 * i + 2] -= delta.x;
      r_scores_[4 * i + 3] -= delta.y;
    }
  }

  TESSERA_DEVICE const uint4* weights() const {
    return shared_.weights + buffer_.slot * (kConfig.weight_bytes() / 16) + threadIdx.x % 128;
  }

  // dP where nothing is seen, which may be anything.
  TESSERA_DEVICE void zero_hidden() {
    const uint4* const s_weights = weights();
#pragma unroll
    for (int i = 0; i < kScores / 8; ++i) {
      const uint4 words = s_weights[128 * i];
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        float* const r_pair = r_scores_ + 8 * i + 2 * x;
        r_pair[0] = (word[x] & 0xFFFFU) == 0 ? 0.0F : r_pair[0];
        r_pair[1] = word[x] >> 16 == 0 ? 0.0F : r_pair[1];
      }
    }
  }

  // dS^T = P^T o (dP^T - delta), without the scale, which dK gets at the end. Of some of the queries, 16 at a time.
  template <int kFrom, int kTo>
  TESSERA_DEVICE void compute_score_gradients() {
    const uint4* const s_weights = weights();
#pragma unroll
    for (int i = kFrom; i < kTo; ++i) {
      const uint4 words = s_weights[128 * i];
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const float2 weights = ptx::unpack<Element>(word[x]);
        r_packed_[4 * i + x] =
            ptx::pack<Element>(weights.x * r_scores_[8 * i + 2 * x], weights.y * r_scores_[8 * i + 2 * x + 1]);
      }
    }
  }
};

}  // namespace tessera::sm90
