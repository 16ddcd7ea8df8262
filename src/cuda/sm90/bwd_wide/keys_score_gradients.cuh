// The consumer warpgroup of the kernel for dK and dV of wide heads that computes dS and dK, see keys_consumer.cuh.
#pragma once

#include "cuda/sm90/bwd_wide/keys_consumer.cuh"

namespace tessera::sm90 {

template <BackwardKeysConfig kConfig, MaskKind kMask, class Element>
class ScoreGradientConsumer : KeysConsumer<kConfig, kMask, Element> {
  using Base = KeysConsumer<kConfig, kMask, Element>;
  using Base::params_, Base::shared_, Base::work_, Base::query_, Base::dout_, Base::buffer_, Base::kScores,
      Base::r_packed_, Base::r_gradient_;

 public:
  TESSERA_DEVICE ScoreGradientConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared, {params.dk, params.dk_strides, params.dim_qk, params.scale}) {}

  TESSERA_DEVICE void run() {
    if (!start_tile()) {
      return;
    }
    step<true>();
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
      step<false>();
      if (ends) {
        this->write(r_gradient_, rows);
        this->accumulate_ = false;
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
    this->key_parity_ ^= 1;
    return true;
  }

  // dK of the step before, and dS of this one.
  template <bool kFirst>
  TESSERA_DEVICE void step() {
    float r_dweights[kScores];
    const int rows = work_->queries - this->first_query();
    if constexpr (!kFirst) {
      issue_dk();
    }
    this->await_stage(shared_.bar_dout_full, shared_.douts, dout_, rows, kRowBarrier);
    this->issue_scores(r_dweights, shared_.values, shared_.douts, dout_.slot);
    if constexpr (!kFirst) {
      finish_dk<1>();
    }
    ptx::wgmma_wait<0>();
    ptx::pin(r_dweights);
    if (this->left_ == 0) {
      this->release(shared_.bar_value_empty);
    }
    subtract_delta(r_dweights);
    this->release_stage(shared_.bar_dout_empty, dout_);
    ptx::mbarrier_wait(shared_.bar_weight_full + buffer_.slot, buffer_.parity);
    if (this->is_masked()) {
      compute_score_gradients<true>(r_dweights);
    } else {
      compute_score_gradients<false>(r_dweights);
    }
    this->release_stage(shared_.bar_weight_empty, buffer_);
    query_rows_ = rows;
  }

  TESSERA_DEVICE void finish() {
    issue_dk();
    finish_dk<0>();
  }

  TESSERA_DEVICE void issue_dk() {
    this->await_stage(shared_.bar_query_full, shared_.queries, query_, query_rows_, kRowBarrier);
    this->issue_gradient(shared_.queries, query_.slot);
  }
  template <int kPending>
  TESSERA_DEVICE void finish_dk() {
    ptx::wgmma_wait<kPending>();
    ptx::pin(r_gradient_);
    this->release_stage(shared_.bar_query_empty, query_);
  }

  TESSERA_DEVICE void subtract_delta(float (&r_dweights)[kScores]) const {
    const float2* const s_delta =
        reinterpret_cast<const float2*>(shared_.delta + dout_.slot * kConfig.tile_q) + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 delta = s_delta[4 * i];
      r_dweights[4 * i] -= delta.x;
      r_dweights[4 * i + 1] -= delta.y;
      r_dweights[4 * i + 2] -= delta.x;
      r_dweights[4 * i + 3] -= delta.y;
    }
  }

  // dS^T = P^T o (dP^T - delta), without the scale, which dK gets at the end.
  template <bool kMasked>
  TESSERA_DEVICE void compute_score_gradients(const float (&r_dweights)[kScores]) {
    const float4* const s_weights = shared_.weights + buffer_.slot * (kConfig.weight_bytes() / 16) + threadIdx.x % 128;
    const auto gradient = [](float weight, float dweight) {
      return kMasked && weight == 0.0F ? 0.0F : weight * dweight;  // whatever dP is where nothing is seen
    };
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float4 weights = s_weights[128 * i];
      r_packed_[2 * i] =
          ptx::pack<Element>(gradient(weights.x, r_dweights[4 * i]), gradient(weights.y, r_dweights[4 * i + 1]));
      r_packed_[2 * i + 1] =
          ptx::pack<Element>(gradient(weights.z, r_dweights[4 * i + 2]), gradient(weights.w, r_dweights[4 * i + 3]));
    }
  }

  int query_rows_ = 0;  // of the step whose dK is to come, that belong to the sequence
};

}  // namespace tessera::sm90
