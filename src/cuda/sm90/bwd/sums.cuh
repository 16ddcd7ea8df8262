// Sums of dQ to dQ, under a listed mask: by the blocks that are done, while others still add, instead of by a kernel behind this
// one.
#pragma once

#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

// A consumer warpgroup without work takes the next tile of queries of the plan's order, in which those whose terms come up
// first are first, waits for its last term, and rounds it. It waits for blocks that compute alone: none of them waits for it.
template <BackwardConfig kConfig, class Element>
class DqRounder {
 public:
  // `s_number` is a word of this warpgroup's, `barrier` a named one.
  TESSERA_DEVICE DqRounder(const BackwardParams& params, volatile std::int32_t* s_number, int barrier)
      : params_(params), s_number_(s_number), barrier_(barrier), leader_(threadIdx.x % 128 == 0) {}

  TESSERA_DEVICE void run(float scale) {
    const ListedBackward& listed = params_.listed;
    int next = leader_ ? claim() : 0;
    while (true) {
      if (leader_) {
        if (next < listed.sum_count) {
          ptx::wait_until_equal(params_.order.turns + listed.sums[next].tile, listed.sums[next].terms);
        }
        *s_number_ = next;
        next = claim();
      }
      ptx::named_barrier_sync(barrier_, 128);
      const int number = *s_number_;
      if (number >= listed.sum_count) {
        return;
      }
      round(listed.sums[number], scale);
      ptx::named_barrier_sync(barrier_, 128);
    }
  }

 private:
  static constexpr int kBlock = 64 * 64;
  static constexpr int kBlocks = kConfig.tile_q * kConfig.dq_columns() / kBlock;
  static constexpr bool kBelow = kConfig.tile_q == 128;  // blocks are below each other, else side by side

  TESSERA_DEVICE int claim() const { return atomicAdd(params_.order.counter, 1); }

  TESSERA_DEVICE void round(const ListedSum& sum, float scale) const {
    const float factor[2] = {scale, scale};
    const float* const g_tile =
        params_.dq_sum + static_cast<std::int64_t>(sum.tile) * kConfig.tile_q * kConfig.dq_columns();
#pragma unroll 1
    for (int block = 0; block < kBlocks; ++block) {
      float r_values[32] = {};
      if (sum.terms > 0) {
        const float4* const g_block = reinterpret_cast<const float4*>(g_tile + block * kBlock) + threadIdx.x % 128;
#pragma unroll
        for (int x = 0; x < 8; ++x) {
          const float4 value = __ldcg(g_block + 128 * x);
          r_values[4 * x] = value.x;
          r_values[4 * x + 1] = value.y;
          r_values[4 * x + 2] = value.z;
          r_values[4 * x + 3] = value.w;
        }
      }
      const int row = tile::fragment_row() + (kBelow ? 64 * block : 0);
      const int first_column = kBelow ? 0 : 64 * block;
      const Strides& strides = params_.listed.dq_strides;
      std::uint16_t* const g_row = static_cast<std::uint16_t*>(params_.listed.dq) + sum.batch * strides.batch +
                                   static_cast<std::int64_t>(sum.token + row) * strides.token +
                                   sum.head * strides.head + first_column;
      std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * strides.token};
      const bool stored[2] = {row < sum.rows, row + 8 < sum.rows};
      tile::store_rows<Element, true>(r_values, factor, g_rows, stored, params_.dim_qk - first_column);
    }
  }

  const BackwardParams& params_;
  volatile std::int32_t* const s_number_;
  const int barrier_;
  const bool leader_;
};

}  // namespace tessera::sm90
