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
      const std::uint64_t a = ptx::depth_major(s_rows, k / 4 * kConfig.tile_k * 128 + k % 4 * 32);
      const std::uint64_t b = ptx::depth_major(s_stage, k / 4 * kConfig.tile_q * 128 + k % 4 * 32);
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
                                                ptx::width_major(s_stage, kConfig.tile_q * 128, k * 2048),
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
  // A stage or a buffer of P, by every thread, since each has read or written a part of its own: racecheck does not see that
  // __syncwarp() orders what a warp did before one arrival of it.
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

}  // namespace tessera::sm90
