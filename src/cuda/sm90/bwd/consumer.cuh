// A consumer warpgroup of the backward kernel: 64 keys of every tile of keys.
//
// With keys as rows, S^T = K Q^T and dP^T = V dO^T leave P^T and dS^T in registers as the first operands of dV += P^T dO and
// dK += dS^T Q; dS^T goes through shared memory for dQ = dS K alone, which each warpgroup computes half of.
#pragma once

#include "cuda/sm90/bwd/products.cuh"
#include "cuda/sm90/bwd/score.cuh"
#include "cuda/sm90/bwd/sums.cuh"
#include "cuda/sm90/bwd/visits.cuh"
#include "cuda/tile/listed.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

template <BackwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class BackwardConsumer {
 public:
  using Shared = BackwardShared<kConfig, kFeatures>;
  using Forms = typename Shared::Forms;
  using Products = BackwardProducts<kConfig, Element, kFeatures>;
  using Score = BackwardScore<kConfig, Element, kFeatures, Forms::kLseParts>;
  using Statistic = typename Products::Statistic;

  TESSERA_DEVICE BackwardConsumer(const BackwardParams& params, const Shared& shared, int warpgroup)
      : params_(params),
        shared_(shared),
        warpgroup_(warpgroup),
        leader_(threadIdx.x % 128 == 0),
        products_(shared, warpgroup),
        score_(params, warpgroup) {}

  TESSERA_DEVICE void run() {
    for (int round = 0;; ++round) {
      work_ = &shared_.await_tile(slot_);
      if (work_->valid == 0) {
        round_sums();
        return;
      }
      key_parity_ = round & 1;
      ptx::mbarrier_wait(shared_.bar_key_full, key_parity_);
      walk_queries();
      end_tile();
      shared_.release_tile(slot_);
    }
  }

 private:
  static constexpr int kScores = Products::kScores;
  static constexpr int kOutputs = Products::kOutputs;
  static constexpr int kRowBarrier = 1;

  TESSERA_DEVICE void round_sums() const {
    if constexpr (kMask == MaskKind::listed) {
      // In a tile that is none only the first word means anything.
      BackwardTile& s_none = shared_.tiles[slot_.slot];
      DqRounder<kConfig, Element>(params_, warpgroup_ == 0 ? &s_none.begin : &s_none.end, kRowBarrier + warpgroup_)
          .run(params_.scale * score_.kept_scale());
    }
  }

  TESSERA_DEVICE void walk_queries() {
    const BackwardVisits<kMask> visits(*work_);
    if (visits.count() == 0) {
      zero(r_dk_);
      zero(r_dv_);
      ptx::mbarrier_wait(shared_.bar_value_full, key_parity_);
    }
    const bool ends_inside = work_->first_key + kConfig.tile_k > work_->keys;
    if (ends_inside && params_.batch.sequences != nullptr && visits.count() > 0) {
      ptx::mbarrier_wait(shared_.bar_value_full, key_parity_);
      const int first = work_->keys - work_->first_key;
      tile::clear_rows<kConfig.tile_k, kConfig.sub_tiles()>(shared_.keys, first, kRowBarrier + warpgroup_);
      tile::clear_rows<kConfig.tile_k, kConfig.sub_tiles()>(shared_.values, first, kRowBarrier + warpgroup_);
    }
    accumulate_ = false;
    if constexpr (kMask == MaskKind::listed) {
      walk_terms();
    }
    for (int member = 0; kMask != MaskKind::listed && member < params_.batch.group_size; ++member) {
      score_.start_head(*work_, work_->key_head * params_.batch.group_size + member);
      const int start = visits.start(member, params_.batch.group_size);
      for (int step = 0; step < visits.count(); ++step) {
        const int first_query = visits.at(start, step) * kConfig.tile_q;
        walk_tile(first_query, ends_inside || is_partial(first_query));
      }
    }
  }

  // Keys are given back as soon as the last dQ is computed, so that the next ones load while it is handed over and gradients are
  // written. Of a tile without queries dQ is of nothing, as in a first step: under a branch ptxas serialises all products.
  TESSERA_DEVICE void end_tile() {
    if (behind_) {
      ptx::mbarrier_wait(shared_.bar_weights, weight_parity_ ^ 1);
    }
    float r_dq[32];
    products_.issue_dq(r_dq, weight_buffer_ ^ 1);
    ptx::wgmma_wait<0>();
    ptx::pin(r_dq);
    if (leader_) {
      ptx::mbarrier_arrive(shared_.bar_keys_empty);
    }
    if (behind_) {
      hand_over(r_dq);
      behind_ = false;
    }
    write(r_dv_, score_.kept_scale(), params_.dv, params_.dv_strides, params_.dim_v);
    write(r_dk_, params_.scale * score_.kept_scale(), params_.dk, params_.dk_strides, params_.dim_qk);
  }

  TESSERA_DEVICE void walk_terms() {
    for (int n = work_->begin; n < work_->end; ++n) {
      if constexpr (Score::kUsesHead) {
        const int member = params_.batch.group_size > 1 ? __ldg(&params_.listed.terms[n].member) : 0;
        score_.start_head(*work_, work_->key_head * params_.batch.group_size + member);
      }
      ptx::mbarrier_wait(shared_.bar_query_full + stage_.slot, stage_.parity);
      const ListedVisit visit = shared_.visits[stage_.slot];
      walk_tile(visit.tile * kConfig.tile_q, visit.bits >= 0, visit.bits);
    }
  }

  TESSERA_DEVICE bool is_partial(int first_query) const {
    return (kMask != MaskKind::dense && work_->first_key + kConfig.tile_k - 1 > first_query + work_->upper) ||
           (kMask == MaskKind::window && work_->first_key < first_query + kConfig.tile_q - 1 + work_->lower);
  }

  // Kernels with a score program have the code of a step once, which compiles in half the time, and zero hidden elements after it.
  TESSERA_DEVICE void walk_tile(int first_query, bool masked, int bits = 0) {
    if (kFeatures == 0 && masked) {
      load_bits(bits);
      step<true>(first_query, true);
    } else {
      if (masked) {
        load_bits(bits);
      }
      step<false>(first_query, masked);
    }
  }

  TESSERA_DEVICE void load_bits(int bits) {
    if constexpr (kMask == MaskKind::listed) {
      bits_.load(params_.listed.bits, bits, kConfig.tile_k, warpgroup_ * 64 + tile::fragment_row());
    }
  }

  template <bool kMasked>
  TESSERA_DEVICE void step(int first_query, bool masked) {
    clear_hidden_queries(first_query);
    float r_scores[kScores];
    float r_dweights[kScores];
    std::uint32_t r_packed[kScores / 2];
    std::uint32_t r_dpacked[kScores / 2];

    ptx::mbarrier_wait(shared_.bar_query_full + stage_.slot, stage_.parity);
    ptx::mbarrier_wait(shared_.bar_parts_full, parts_parity_);
    products_.template issue_scores<Statistic::lse>(r_scores, shared_.keys, shared_.queries, stage_.slot);
    score_.draw(*work_, first_query, shared_.weights + weight_buffer_ * kConfig.weight_bytes(),
                kRowBarrier + warpgroup_, [this] { await_weight_buffer(); });
    issue_dweights(r_dweights);
    ptx::wgmma_wait<1>();
    ptx::pin(r_scores);
    if constexpr (kMasked) {
      hide(r_scores, first_query);
    }
    if constexpr (Score::kChangesWeights) {
      score_.compute_weights(r_packed, r_dpacked, r_scores, *work_, first_query, statistics(shared_.lse_log2));
    } else {
      compute_weights(r_scores);
      tile::round_to<Element>(r_packed, r_scores);
    }
    if (kFeatures != 0 && masked) {
      zero_hidden(r_packed, first_query);
    }
    // It need not be awaited before dP, but without a branch in between the compiler puts exponentials behind the wait for dP.
    await_weight_buffer();
    ptx::wgmma_wait<0>();
    ptx::pin(r_dweights);
    if constexpr (!Forms::kReadsDelta) {
      release_parts();
    }
    if constexpr (kFeatures != 0) {
      score_.compute_score_gradients(r_dpacked, r_packed, r_dweights, statistics(shared_.delta));
    } else {
      compute_score_gradients<kMasked>(r_dpacked, r_scores, r_dweights);
    }
    if constexpr (Forms::kReadsDelta) {
      release_parts();
    }
    if (kFeatures != 0 && masked) {
      zero_hidden(r_dpacked, first_query);
    }

    score_.finish_draw(kRowBarrier + warpgroup_);
    products_.store_score_gradients(r_dpacked, weight_buffer_);
    // dQ of the step before, so that the warpgroups need not be in step; in the first one of nothing. It is handed over while the
    // products behind it are under way.
    float r_dq[32];
    products_.issue_dq(r_dq, weight_buffer_ ^ 1);
    products_.issue_gradient(r_dv_, r_packed, shared_.douts, stage_.slot, accumulate_);
    products_.issue_gradient(r_dk_, r_dpacked, shared_.queries, stage_.slot, accumulate_);
    ptx::wgmma_wait<2>();
    ptx::pin(r_dq);
    hand_over_weights();
    if (behind_) {
      hand_over(r_dq);
    }
    ptx::wgmma_wait<1>();
    ptx::pin(r_dv_);
    release(shared_.bar_dout_empty + stage_.slot);
    ptx::wgmma_wait<0>();
    ptx::pin(r_dk_);
    release(shared_.bar_query_empty + stage_.slot);
    stage_.advance();
    weight_buffer_ ^= 1;
    accumulate_ = true;
    behind_ = true;
  }

  // dS of this step is written and that of the step before read. Together, so that two buffers are enough, and behind dQ: the fence
  // waits for shared memory, meanwhile products are under way.
  TESSERA_DEVICE void hand_over_weights() {
    ptx::fence_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(shared_.bar_weights);
    }
    weight_parity_ ^= 1;
  }

  // The other warpgroup has written dS of the last step and read that of the one before, in whose place this step's is written.
  // In the first step of a tile end_tile() has waited for that.
  TESSERA_DEVICE void await_weight_buffer() const {
    if (behind_) {
      ptx::mbarrier_wait(shared_.bar_weights, weight_parity_ ^ 1);
    }
  }

  // Of this thread's columns.
  TESSERA_DEVICE static const float2* statistics(const float* s_values) {
    return reinterpret_cast<const float2*>(s_values) + threadIdx.x % 4;
  }

  // A stage, by every thread, since each has read statistics in it: racecheck does not see that __syncwarp() orders the reads of
  // a warp before one arrival of it. Costs 0.1 %.
  TESSERA_DEVICE static void release(std::uint64_t* bar_empty) { ptx::mbarrier_arrive(bar_empty); }

  // By every thread that has read statistics itself, as release().
  TESSERA_DEVICE void release_parts() {
    if (Forms::kReads || threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(shared_.bar_parts_empty);
    }
    parts_parity_ ^= 1;
  }

  TESSERA_DEVICE void issue_dweights(float (&r_dweights)[kScores]) {
    ptx::mbarrier_wait(shared_.bar_dout_full + stage_.slot, stage_.parity);
    if (!accumulate_) {
      ptx::mbarrier_wait(shared_.bar_value_full, key_parity_);
    }
    products_.template issue_scores<Statistic::delta>(r_dweights, shared_.values, shared_.douts, stage_.slot);
  }

  // P^T = 2^(scale (S^T - LSE / scale)), of which the product did the difference.
  TESSERA_DEVICE void compute_weights(float (&r_scores)[kScores]) const {
#pragma unroll
    for (float& score : r_scores) {
      score = ptx::exp2(score * params_.scale_log2);
    }
  }

  // dS^T = P^T o (dP^T - delta), without the scale, which dQ and dK get at the end. Columns are queries. The product did the
  // difference, unless there is a score program.
  template <bool kMasked>
  TESSERA_DEVICE void compute_score_gradients(std::uint32_t (&r_packed)[kScores / 2], const float (&r_weights)[kScores],
                                              const float (&r_dweights)[kScores]) const {
    const auto gradient = [&](int i) {
      const float value = r_weights[i] * r_dweights[i];
      return kMasked && r_weights[i] == 0.0F ? 0.0F : value;  // whatever dP is where nothing is seen
    };
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      r_packed[i] = ptx::pack<Element>(gradient(2 * i), gradient(2 * i + 1));
    }
  }

  // dQ to the warps that add it to memory, in the order of registers.
  TESSERA_DEVICE void hand_over(const float (&r_dq)[32]) {
    ptx::mbarrier_wait(shared_.bar_dq_empty + dq_.slot, dq_.parity ^ 1);
    float4* const s_half =
        reinterpret_cast<float4*>(shared_.dq + (2 * dq_.slot + warpgroup_) * kConfig.dq_half_bytes()) +
        threadIdx.x % 128;
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      s_half[128 * x] = make_float4(r_dq[4 * x], r_dq[4 * x + 1], r_dq[4 * x + 2], r_dq[4 * x + 3]);
    }
    ptx::fence_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(shared_.bar_dq_full + dq_.slot);
    }
    dq_.advance();
  }

  // Rows are keys here: key k of the thread sees queries k - upper .. k - lower.
  TESSERA_DEVICE void hide(float (&r_scores)[kScores], int first_query) const {
    if constexpr (kMask == MaskKind::listed) {
      bits_.hide(r_scores);
      return;
    }
    constexpr int kEverything = 1 << 29;
    int first[2];
    int last[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int key = work_->first_key + warpgroup_ * 64 + tile::fragment_row() + 8 * r;
      const int column = first_query + tile::fragment_column();
      first[r] = kMask == MaskKind::dense ? -kEverything : key - work_->upper - column;
      last[r] = kMask == MaskKind::window ? key - work_->lower - column : kEverything;
      first[r] = key < work_->keys ? first[r] : kEverything;
    }
    tile::hide_scores<true>(r_scores, first, last);
  }

  // What is hidden of a fragment in 16 bits.
  TESSERA_DEVICE void zero_hidden(std::uint32_t (&r_packed)[kScores / 2], int first_query) const {
    float r_hidden[kScores] = {};
    hide(r_hidden, first_query);
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const bool hidden[2] = {r_hidden[i] != 0.0F, r_hidden[i + 1] != 0.0F};
      r_packed[i / 2] &= (hidden[0] ? 0U : 0x0000FFFFU) | (hidden[1] ? 0U : 0xFFFF0000U);
    }
  }

  // Rows of the next sequence, which only tables of sequences leave behind the last query.
  TESSERA_DEVICE void clear_hidden_queries(int first_query) const {
    if (params_.batch.ragged == 0 || first_query + kConfig.tile_q <= work_->queries) {
      return;
    }
    const int first = work_->queries - first_query;
    ptx::mbarrier_wait(shared_.bar_query_full + stage_.slot, stage_.parity);
    tile::clear_rows<kConfig.tile_q, kConfig.sub_tiles()>(shared_.queries + stage_.slot * kConfig.query_bytes(), first,
                                                          kRowBarrier + warpgroup_);
    ptx::mbarrier_wait(shared_.bar_dout_full + stage_.slot, stage_.parity);
    tile::clear_rows<kConfig.tile_q, kConfig.sub_tiles()>(shared_.douts + stage_.slot * kConfig.query_bytes(), first,
                                                          kRowBarrier + warpgroup_);
  }

  TESSERA_DEVICE static void zero(float (&r_values)[kOutputs]) {
#pragma unroll
    for (float& value : r_values) {
      value = 0.0F;
    }
  }

  TESSERA_DEVICE void write(const float (&r_gradient)[kOutputs], float scale, void* g_data, const Strides& strides,
                            int dim) const {
    const int row = work_->first_key + warpgroup_ * 64 + tile::fragment_row();
    std::uint16_t* const g_row = static_cast<std::uint16_t*>(g_data) + work_->batch * strides.batch +
                                 static_cast<std::int64_t>(work_->key_row + row) * strides.token +
                                 work_->key_head * strides.head;
    std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * strides.token};
    const float factor[2] = {scale, scale};
    const bool stored[2] = {row < work_->stored_keys, row + 8 < work_->stored_keys};
    tile::store_rows<Element, true>(r_gradient, factor, g_rows, stored, dim);
  }

  const BackwardParams& params_;
  const Shared& shared_;
  const int warpgroup_;
  const bool leader_;
  const Products products_;
  Score score_;

  const BackwardTile* work_ = nullptr;
  bool accumulate_ = false;
  int key_parity_ = 0;
  int weight_buffer_ = 0;
  int weight_parity_ = 0;
  int parts_parity_ = 0;
  bool behind_ = false;  // dQ of the last step is not computed yet
  tile::RingPosition<BackwardConfig::kTileSlots> slot_;
  tile::RingPosition<kConfig.stages> stage_;
  tile::RingPosition<BackwardConfig::kWriters> dq_;

  float r_dk_[kOutputs];
  float r_dv_[kOutputs];
  tile::ListedBits<kConfig.tile_q> bits_;
};

}  // namespace tessera::sm90
