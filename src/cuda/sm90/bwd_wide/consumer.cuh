// The consumer warpgroups of the backward kernel for wide heads. Rows are the 64 keys of the block's tile, columns the 64
// queries of a step:
//   WeightConsumer         S^T = K Q^T,  P^T = exp(scale S^T - LSE),   dV += P^T dO,  the first columns of dQ = dS K
//   ScoreGradientConsumer  dP^T = V dO^T,  dS^T = P^T o (dP^T - delta),  dK += dS^T Q,  the other columns of dQ
// Each issues the first product of a step before it hands over the last of its dQ of the step before.
//
// P goes from the first to the second in float32 through `weights`, dS from the second to both through `score_gradients`. One
// buffer of each is enough: dS of a step is written after P of that step has arrived, which the first warpgroup sends when its
// dQ of the step before is complete; P of a step is written after dS of the step before has arrived, by when P has been read.
#pragma once

#include "cuda/sm90/bwd_wide/shared.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

// The steps of a tile of keys: all tiles of queries that see it, of every query head of the group.
template <BackwardWideConfig kConfig, MaskKind kMask>
class BackwardSteps {
 public:
  TESSERA_DEVICE BackwardSteps(const BackwardTile& work, const BackwardParams& params)
      : visits_(work, params.order), group_size_(params.batch.group_size) {}

  TESSERA_DEVICE int count() const { return visits_.count() * group_size_; }
  TESSERA_DEVICE int first_query() const { return visits_.at(visit_) * kConfig.tile_q; }
  TESSERA_DEVICE void advance() { visit_ = visit_ + 1 == visits_.count() ? 0 : visit_ + 1; }

 private:
  BackwardVisits<kConfig.tiles(), kMask> visits_;
  int group_size_;
  int visit_ = 0;
};

// What both have in common. `kRole` is 0 or 1.
template <BackwardWideConfig kConfig, MaskKind kMask, class Element, int kRole>
class WideConsumer {
 public:
  using Shared = BackwardWideShared<kConfig>;
  using Steps = BackwardSteps<kConfig, kMask>;

 protected:
  static constexpr int kScores = kConfig.tile_q / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  static constexpr int kDqBlocks = kConfig.dq_blocks(kRole);
  static constexpr int kWeightBarrier = 1;         // P is in shared memory
  static constexpr int kScoreGradientBarrier = 2;  // dS is
  static constexpr int kRowBarrier = 3 + kRole;

  TESSERA_DEVICE WideConsumer(const BackwardParams& params, const Shared& shared)
      : params_(params), shared_(shared), leader_(threadIdx.x % 128 == 0) {}

  // The next tile of keys, with K in shared memory; false when there is none.
  TESSERA_DEVICE bool start_tile() {
    work_ = &shared_.await_tile(slot_);
    if (work_->valid == 0) {
      return false;
    }
    ptx::mbarrier_wait(shared_.bar_key_full, key_parity_);
    ends_inside_ = work_->first_key + kConfig.tile_k > work_->keys;
    if (ends_inside_ && params_.batch.sequences != nullptr) {
      tile::clear_rows<kConfig.tile_k, kConfig.sub_tiles()>(shared_.keys, max(work_->keys - work_->first_key, 0),
                                                            kRowBarrier);
    }
    zero_gradient();
    return true;
  }

  // K and V are free, and the gradient is complete.
  TESSERA_DEVICE void finish_tile(float scale, void* g_data, const Strides& strides, int dim) {
    if (leader_) {
      ptx::mbarrier_arrive(shared_.bar_keys_empty);
    }
    write(scale, g_data, strides, dim);
    shared_.release_tile(slot_);
    key_parity_ ^= 1;
  }

  TESSERA_DEVICE bool is_masked(int first_query) const {
    return ends_inside_ ||
           (kMask != MaskKind::dense && work_->first_key + kConfig.tile_k - 1 > first_query + work_->upper) ||
           (kMask == MaskKind::window && work_->first_key < first_query + kConfig.tile_q - 1 + work_->lower);
  }

  // S^T or dP^T: both operands have their depth contiguous.
  TESSERA_DEVICE void issue_scores(float (&r_result)[kScores], const std::uint8_t* s_a, const std::uint8_t* s_stages,
                                   int stage) {
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

  // Of dO or Q, as the second operand of the products for dV and dK.
  TESSERA_DEVICE std::uint32_t stage_address(const std::uint8_t* s_stages, int stage) const {
    return ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
  }

  // This warpgroup's columns of dQ = dS K.
  TESSERA_DEVICE void issue_dq(float (&r_dq)[32 * kDqBlocks]) {
    using Product = ptx::Wgmma<64 * kDqBlocks, Element>;
    const std::uint32_t s_score_gradients = ptx::fresh(ptx::shared_address(shared_.score_gradients));
    const std::uint32_t s_keys =
        ptx::fresh(ptx::shared_address(shared_.keys) + kConfig.dq_first_block(kRole) * kConfig.tile_k * 128);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_k / 16; ++k) {
      const std::uint64_t a = ptx::width_major(s_score_gradients + k * 2048, kConfig.tile_k * 128);
      const std::uint64_t b = ptx::width_major(s_keys + k * 2048, kConfig.tile_k * 128);
      if (k == 0) {
        Product::template ss_first<1, 1>(r_dq, a, b);
      } else {
        Product::template ss<1, 1>(r_dq, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  // Blocks [begin, end) of dQ to the warp that adds them to memory, in the order of registers.
  template <int kBegin, int kEnd>
  TESSERA_DEVICE void hand_over(const float (&r_dq)[32 * kDqBlocks]) {
    float4* const s_block =
        reinterpret_cast<float4*>(shared_.dq + kRole * kConfig.dq_block_bytes()) + threadIdx.x % 128;
#pragma unroll
    for (int block = kBegin; block < kEnd; ++block) {
      ptx::mbarrier_wait(shared_.bar_dq_empty + kRole, dq_parity_ ^ 1);
#pragma unroll
      for (int x = 0; x < 8; ++x) {
        const float* const r_four = r_dq + 32 * block + 4 * x;
        s_block[128 * x] = make_float4(r_four[0], r_four[1], r_four[2], r_four[3]);
      }
      ptx::fence_async_shared();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        ptx::mbarrier_arrive(shared_.bar_dq_full + kRole);
      }
      dq_parity_ ^= 1;
    }
  }

  // Waits for a stage of Q or dO. Rows of the next sequence, which only tables of sequences leave behind the last query, are
  // cleared by each warpgroup for itself.
  TESSERA_DEVICE void await_stage(std::uint64_t* bar_full, int parity, std::uint8_t* s_stage, int first_query) const {
    ptx::mbarrier_wait(bar_full, parity);
    if (params_.batch.ragged != 0 && first_query + kConfig.tile_q > work_->queries) {
      tile::clear_rows<kConfig.tile_q, kConfig.sub_tiles()>(s_stage, work_->queries - first_query, kRowBarrier);
    }
  }
  TESSERA_DEVICE void await_queries(int first_query) const {
    await_stage(shared_.bar_query_full + query_.slot, query_.parity,
                shared_.queries + query_.slot * kConfig.query_bytes(), first_query);
  }
  TESSERA_DEVICE void await_douts(int first_query) const {
    await_stage(shared_.bar_dout_full + dout_.slot, dout_.parity, shared_.douts + dout_.slot * kConfig.query_bytes(),
                first_query);
  }

  // Only when all warps of the warpgroup are past their last reading of the stage.
  TESSERA_DEVICE void release_queries() {
    if (leader_) {
      ptx::mbarrier_arrive(shared_.bar_query_empty + query_.slot);
    }
    query_.advance();
  }
  TESSERA_DEVICE void release_douts() {
    if (leader_) {
      ptx::mbarrier_arrive(shared_.bar_dout_empty + dout_.slot);
    }
    dout_.advance();
  }

  TESSERA_DEVICE void zero_gradient() {
#pragma unroll
    for (float& value : r_gradient_) {
      value = 0.0F;
    }
  }

  TESSERA_DEVICE void write(float scale, void* g_data, const Strides& strides, int dim) const {
    const int row = work_->first_key + tile::fragment_row();
    std::uint16_t* const g_row = static_cast<std::uint16_t*>(g_data) + work_->batch * strides.batch +
                                 static_cast<std::int64_t>(work_->key_row + row) * strides.token +
                                 work_->key_head * strides.head;
    std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * strides.token};
    const float factor[2] = {scale, scale};
    const bool stored[2] = {row < work_->stored_keys, row + 8 < work_->stored_keys};
    tile::store_rows<Element>(r_gradient_, factor, g_rows, stored, dim);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  const bool leader_;

  const BackwardTile* work_ = nullptr;
  bool ends_inside_ = false;  // the tile holds keys that nothing sees
  int key_parity_ = 0;
  int dq_parity_ = 0;
  tile::RingPosition<Shared::kTileSlots> slot_;
  tile::RingPosition<Shared::kStages> query_;
  tile::RingPosition<Shared::kDoutStages> dout_;

  float r_gradient_[kOutputs];
};

template <BackwardWideConfig kConfig, MaskKind kMask, class Element>
class WeightConsumer : WideConsumer<kConfig, kMask, Element, 0> {
  using Base = WideConsumer<kConfig, kMask, Element, 0>;
  using Base::params_, Base::query_, Base::dout_, Base::kScores, Base::kDqBlocks, Base::r_gradient_, Base::shared_,
      Base::work_;

 public:
  TESSERA_DEVICE WeightConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared) {}

  TESSERA_DEVICE void run() {
    while (this->start_tile()) {
      walk_queries();
      this->finish_tile(1.0F, params_.dv, params_.dv_strides, params_.dim_v);
    }
  }

 private:
  TESSERA_DEVICE void walk_queries() {
    typename Base::Steps steps(*work_, params_);
    if (steps.count() == 0) {
      return;
    }
    float r_scores[kScores];
    float r_dq[32 * kDqBlocks];
    start_scores(r_scores, steps.first_query());
    for (int left = steps.count(); left > 1; --left) {
      step(r_scores, r_dq, steps.first_query());
      steps.advance();
      start_scores(r_scores, steps.first_query());
      this->template hand_over<1, kDqBlocks>(r_dq);
    }
    step(r_scores, r_dq, steps.first_query());
    this->template hand_over<1, kDqBlocks>(r_dq);
  }

  TESSERA_DEVICE void start_scores(float (&r_scores)[kScores], int first_query) {
    this->await_queries(first_query);
    this->issue_scores(r_scores, shared_.keys, shared_.queries, query_.slot);
  }

  TESSERA_DEVICE void step(float (&r_scores)[kScores], float (&r_dq)[32 * kDqBlocks], int first_query) {
    ptx::wgmma_wait<0>();
    ptx::pin(r_scores);
    if (this->is_masked(first_query)) {
      hide(r_scores, first_query);
    }
    compute_weights(r_scores);
    ptx::named_barrier_arrive(Base::kWeightBarrier, 256);
    std::uint32_t r_packed[kScores / 2];
    tile::round_to<Element>(r_packed, r_scores);
    this->await_douts(first_query);
    issue_dv(r_packed);
    ptx::named_barrier_sync(Base::kScoreGradientBarrier, 256);
    this->release_queries();
    this->issue_dq(r_dq);
    ptx::wgmma_wait<1>();
    ptx::pin(r_gradient_);
    this->release_douts();
    ptx::wgmma_wait<0>();
    ptx::pin(r_dq);
    this->template hand_over<0, 1>(r_dq);
  }

  // dV += P^T dO.
  TESSERA_DEVICE void issue_dv(const std::uint32_t (&r_weights)[kScores / 2]) {
    const std::uint32_t s_stage = this->stage_address(shared_.douts, dout_.slot);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_q / 16; ++k) {
      ptx::Wgmma<kConfig.head_dim, Element>::rs(r_gradient_, r_weights + 4 * k,
                                                ptx::width_major(s_stage + k * 2048, kConfig.tile_q * 128), true);
    }
    ptx::wgmma_commit();
  }

  // P^T = 2^(scale S^T - LSE), for this warpgroup and for the other.
  TESSERA_DEVICE void compute_weights(float (&r_scores)[kScores]) const {
    const float2* const s_lse =
        reinterpret_cast<const float2*>(shared_.lse_log2 + query_.slot * kConfig.tile_q) + threadIdx.x % 4;
    float4* const s_weights = shared_.weights + threadIdx.x % 128;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 lse = s_lse[4 * i];
      r_scores[4 * i] = ptx::exp2(fmaf(r_scores[4 * i], params_.scale_log2, -lse.x));
      r_scores[4 * i + 1] = ptx::exp2(fmaf(r_scores[4 * i + 1], params_.scale_log2, -lse.y));
      r_scores[4 * i + 2] = ptx::exp2(fmaf(r_scores[4 * i + 2], params_.scale_log2, -lse.x));
      r_scores[4 * i + 3] = ptx::exp2(fmaf(r_scores[4 * i + 3], params_.scale_log2, -lse.y));
      s_weights[128 * i] = make_float4(r_scores[4 * i], r_scores[4 * i + 1], r_scores[4 * i + 2], r_scores[4 * i + 3]);
    }
  }

  // Key k sees queries k - upper .. k - lower.
  TESSERA_DEVICE void hide(float (&r_scores)[kScores], int first_query) const {
    constexpr int kEverything = 1 << 29;
    int first[2];
    int last[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int key = work_->first_key + tile::fragment_row() + 8 * r;
      const int column = first_query + tile::fragment_column();
      first[r] = kMask == MaskKind::dense ? -kEverything : key - work_->upper - column;
      last[r] = kMask == MaskKind::window ? key - work_->lower - column : kEverything;
      first[r] = key < work_->keys ? first[r] : kEverything;
    }
    tile::hide_scores<true>(r_scores, first, last);
  }
};

template <BackwardWideConfig kConfig, MaskKind kMask, class Element>
class ScoreGradientConsumer : WideConsumer<kConfig, kMask, Element, 1> {
  using Base = WideConsumer<kConfig, kMask, Element, 1>;
  using Base::params_, Base::query_, Base::dout_, Base::kScores, Base::kDqBlocks, Base::r_gradient_, Base::shared_,
      Base::work_;

 public:
  TESSERA_DEVICE ScoreGradientConsumer(const BackwardParams& params, const typename Base::Shared& shared)
      : Base(params, shared) {}

  TESSERA_DEVICE void run() {
    while (this->start_tile()) {
      ptx::mbarrier_wait(shared_.bar_value_full, this->key_parity_);
      walk_queries();
      this->finish_tile(params_.scale, params_.dk, params_.dk_strides, params_.dim_qk);
    }
  }

 private:
  TESSERA_DEVICE void walk_queries() {
    typename Base::Steps steps(*work_, params_);
    if (steps.count() == 0) {
      return;
    }
    float r_dweights[kScores];
    float r_dq[32 * kDqBlocks];
    start_dweights(r_dweights, steps.first_query());
    for (int left = steps.count(); left > 1; --left) {
      step(r_dweights, r_dq, steps.first_query());
      steps.advance();
      start_dweights(r_dweights, steps.first_query());
      this->template hand_over<1, kDqBlocks>(r_dq);
      ptx::wgmma_wait<1>();
      ptx::pin(r_gradient_);
      this->release_queries();
    }
    step(r_dweights, r_dq, steps.first_query());
    this->template hand_over<1, kDqBlocks>(r_dq);
    ptx::wgmma_wait<0>();
    ptx::pin(r_gradient_);
    this->release_queries();
  }

  TESSERA_DEVICE void start_dweights(float (&r_dweights)[kScores], int first_query) {
    this->await_douts(first_query);
    this->issue_scores(r_dweights, shared_.values, shared_.douts, dout_.slot);
  }

  // Leaves the product for dK in flight.
  TESSERA_DEVICE void step(float (&r_dweights)[kScores], float (&r_dq)[32 * kDqBlocks], int first_query) {
    this->await_queries(first_query);
    ptx::wgmma_wait<0>();
    ptx::pin(r_dweights);
    subtract_delta(r_dweights);
    ptx::named_barrier_sync(Base::kWeightBarrier, 256);
    std::uint32_t r_packed[kScores / 2];
    if (this->is_masked(first_query)) {
      compute_score_gradients<true>(r_packed, r_dweights);
    } else {
      compute_score_gradients<false>(r_packed, r_dweights);
    }
    store_score_gradients(r_packed);
    ptx::fence_async_shared();
    ptx::named_barrier_sync(Base::kScoreGradientBarrier, 256);
    this->release_douts();
    this->issue_dq(r_dq);
    issue_dk();
    ptx::wgmma_wait<1>();
    ptx::pin(r_dq);
    this->template hand_over<0, 1>(r_dq);
  }

  // dK += dS^T Q. dS comes from shared memory, where it is anyway: registers are scarcer.
  TESSERA_DEVICE void issue_dk() {
    const std::uint32_t s_rows = ptx::fresh(ptx::shared_address(shared_.score_gradients));
    const std::uint32_t s_stage = this->stage_address(shared_.queries, query_.slot);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_q / 16; ++k) {
      ptx::Wgmma<kConfig.head_dim, Element>::template ss<0, 1>(
          r_gradient_, ptx::depth_major(s_rows + k * 32), ptx::width_major(s_stage + k * 2048, kConfig.tile_q * 128));
    }
    ptx::wgmma_commit();
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

  // dS^T = P^T o (dP^T - delta), without the scale, which dQ and dK get at the end.
  template <bool kMasked>
  TESSERA_DEVICE void compute_score_gradients(std::uint32_t (&r_packed)[kScores / 2],
                                              const float (&r_dweights)[kScores]) const {
    const float4* const s_weights = shared_.weights + threadIdx.x % 128;
    const auto gradient = [](float weight, float dweight) {
      return kMasked && weight == 0.0F ? 0.0F : weight * dweight;  // whatever dP is where nothing is seen
    };
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float4 weights = s_weights[128 * i];
      r_packed[2 * i] =
          ptx::pack<Element>(gradient(weights.x, r_dweights[4 * i]), gradient(weights.y, r_dweights[4 * i + 1]));
      r_packed[2 * i + 1] =
          ptx::pack<Element>(gradient(weights.z, r_dweights[4 * i + 2]), gradient(weights.w, r_dweights[4 * i + 3]));
    }
  }

  // dS^T as rows of keys, 64 queries (128 bytes) each.
  TESSERA_DEVICE void store_score_gradients(const std::uint32_t (&r_packed)[kScores / 2]) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x % 128) / 32 * 16 + lane % 16;
    const std::uint32_t s_row = ptx::fresh(ptx::shared_address(shared_.score_gradients) + row * 128);
#pragma unroll
    for (int i = 0; i < kScores / 4; i += 2) {
      const int chunk = i + lane / 16;
      ptx::store_matrices(s_row + (chunk ^ row % 8) * 16, r_packed[2 * i], r_packed[2 * i + 1], r_packed[2 * i + 2],
                          r_packed[2 * i + 3]);
    }
  }
};

}  // namespace tessera::sm90
