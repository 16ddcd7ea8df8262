// The consumer warpgroups of the kernel for dK and dV of wide heads. Rows are the 64 keys of a tile, columns the queries of a
// step:
//   WeightConsumer         S^T = K Q^T,   P^T = exp(scale S^T - LSE),     dV += P^T dO
//   ScoreGradientConsumer  dP^T = V dO^T, dS^T = P^T o (dP^T - delta),    dK += dS^T Q
// P goes from the first to the second in float32 through shared memory.
//
// Work is one stream of steps across tiles of keys. The first issues S of the next step and then dV of this one, the second dK
// of this one and then dP of the next: so each tensor is read by both at about the same time, its stage is free half a step
// before it is needed again, and the exponentials run beside the product for dV.
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
template <BackwardKeysConfig kConfig, MaskKind kMask, class Element>
class KeysConsumer {
 public:
  using Shared = BackwardKeysShared<kConfig>;

 protected:
  static constexpr int kScores = kConfig.tile_q / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  static constexpr int kRowBarrier = 1;

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
      constexpr float kZeros[kOutputs] = {};
      write(kZeros, rows());
      release_tile();
    }
    visit_ = work_->end;
    left_ = (work_->end - work_->begin) * params_.batch.group_size;
    ends_inside_ = work_->first_key + kConfig.tile_k > work_->keys;
    advance();
    return true;
  }

  TESSERA_DEVICE void release_tile() {
    release(shared_.bar_tile_empty + slot_.slot);
    slot_.advance();
  }

  // To the next step of the tile, from the last tile of queries down: under a causal mask blocks then read the same tiles at
  // the same time.
  TESSERA_DEVICE void advance() {
    --left_;
    visit_ = (visit_ == work_->begin ? work_->end : visit_) - 1;
  }

  TESSERA_DEVICE int first_query() const { return visit_ * kConfig.tile_q; }

  TESSERA_DEVICE bool is_masked() const {
    return ends_inside_ ||
           (kMask != MaskKind::dense && work_->first_key + kConfig.tile_k - 1 > first_query() + work_->upper) ||
           (kMask == MaskKind::window && work_->first_key < first_query() + kConfig.tile_q - 1 + work_->lower);
  }

  // S^T or dP^T: both operands have their depth contiguous.
  TESSERA_DEVICE void issue_scores(float (&r_result)[kScores], const std::uint8_t* s_a, const std::uint8_t* s_stages,
                                   int stage) const {
    using Product = ptx::Wgmma<kConfig.tile_q, Element>;
    const std::uint32_t s_rows = ptx::fresh(ptx::shared_address(s_a));
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.head_dim / 16; ++k) {
      const std::uint64_t a = ptx::depth_major(s_rows + k / 4 * kConfig.tile_k * 128 + k % 4 * 32);
      const std::uint64_t b = ptx::depth_major(s_stage + k / 4 * kConfig.tile_q * 128 + k % 4 * 32);
      if (k == 0) {
        Product::ss_first(r_result, a, b);
      } else {
        Product::ss(r_result, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  // dV += P^T dO or dK += dS^T Q.
  TESSERA_DEVICE void issue_gradient(const std::uint8_t* s_stages, int stage) {
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_q / 16; ++k) {
      ptx::Wgmma<kConfig.head_dim, Element>::rs(r_gradient_, r_packed_ + 4 * k,
                                                ptx::width_major(s_stage + k * 2048, kConfig.tile_q * 128),
                                                accumulate_ || k > 0);
    }
    ptx::wgmma_commit();
    accumulate_ = true;
  }

  // Waits for a stage of Q or dO. `rows` of it belong to the sequence: those of the next one, which only ragged batches leave
  // behind the last query, are cleared by each warpgroup for itself.
  TESSERA_DEVICE void await_stage(std::uint64_t* bar_full, std::uint8_t* s_stages,
                                  const tile::RingPosition<Shared::kStages>& stage, int rows, int barrier) const {
    ptx::mbarrier_wait(bar_full + stage.slot, stage.parity);
    if (params_.batch.ragged != 0 && rows < kConfig.tile_q) {
      tile::clear_rows<kConfig.tile_q, kConfig.sub_tiles()>(s_stages + stage.slot * kConfig.query_bytes(), rows,
                                                            barrier);
    }
  }

  // By every warp, after its last reading.
  TESSERA_DEVICE void release(std::uint64_t* bar_empty) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(bar_empty);
    }
  }
  TESSERA_DEVICE void release_stage(std::uint64_t* bar_empty, tile::RingPosition<Shared::kStages>& stage) const {
    release(bar_empty + stage.slot);
    stage.advance();
  }

  TESSERA_DEVICE Rows rows() const {
    const int row = work_->first_key + tile::fragment_row();
    return {static_cast<std::uint16_t*>(gradient_.data) + work_->batch * gradient_.strides.batch +
                static_cast<std::int64_t>(work_->key_row + row) * gradient_.strides.token +
                work_->key_head * gradient_.strides.head,
            {row < work_->stored_keys, row + 8 < work_->stored_keys}};
  }

  TESSERA_DEVICE void write(const float (&r_values)[kOutputs], const Rows& rows) const {
    std::uint16_t* const g_rows[2] = {rows.g_row, rows.g_row + 8 * gradient_.strides.token};
    const float factor[2] = {gradient_.scale, gradient_.scale};
    tile::store_rows<Element>(r_values, factor, g_rows, rows.stored, gradient_.dim);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  const KeyGradient gradient_;

  const BackwardTile* work_ = nullptr;
  int visit_ = 0;             // the tile of queries of the latest step
  int left_ = 0;              // steps of the tile behind it
  bool ends_inside_ = false;  // the tile holds keys that nothing sees
  bool accumulate_ = false;
  int key_parity_ = 0;
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kStages> query_, dout_;
  tile::RingPosition<Shared::kWeightBuffers> buffer_;

  std::uint32_t r_packed_[kScores / 2];  // P or dS of a step, whose product for the gradient is to come
  float r_gradient_[kOutputs];
};

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
    this->release(shared_.bar_weight_full + buffer_.slot);
    buffer_.advance();
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
    this->release(shared_.bar_weight_empty + buffer_.slot);
    buffer_.advance();
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
