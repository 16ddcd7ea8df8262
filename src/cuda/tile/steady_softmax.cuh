// Online softmax whose maximum seldom moves.
#pragma once

#include "cuda/tile/softmax.cuh"

namespace tessera::tile {

// Weights are powers of two relative to a maximum that a row keeps until its weights of one update add up to more than kLimit:
// float32 sums and weights of 16 bits hold their relative precision up to there. So nobody searches for maxima, exchanges them
// between lanes or rescales anything, but for the few updates in which some row of the warp has passed the limit. What a row
// becomes depends on its own scores alone, not on those of the warp's other rows.
struct SteadySoftmax : OnlineSoftmax {
  // A bit for each lane of the warp, of each of a thread's two rows.
  struct RowLanes {
    unsigned row[2];
    TESSERA_DEVICE bool any() const { return (row[0] | row[1]) != 0; }
  };

  // The first scores of a row, whose maximum is exact.
  template <class Element, int kCount>
  TESSERA_DEVICE void start(float (&r_scores)[kCount], std::uint32_t (&r_weights)[kCount / 2], float scale_log2) {
    weigh_first(r_scores, scale_log2);
    round_to<Element>(r_weights, r_scores);
  }

  // The next ones. `r_output`, what came before, is rescaled where a maximum moves.
  template <class Element, int kCount, int kOutputs>
  TESSERA_DEVICE void update_weights(const float (&r_scores)[kCount], std::uint32_t (&r_weights)[kCount / 2],
                                     float (&r_output)[kOutputs], float scale_log2) {
    const float none[2] = {};
    update_weights<Element, false>(r_scores, none, r_weights, r_output, scale_log2);
  }

 protected:
  // Of scores that are s + shift, one shift for each row, if `kShifted`. The rows whose maximum had to move.
  template <class Element, bool kShifted, int kCount, int kOutputs>
  TESSERA_DEVICE RowLanes update_weights(const float (&r_scores)[kCount], const float (&shift)[2],
                                         std::uint32_t (&r_weights)[kCount / 2], float (&r_output)[kOutputs],
                                         float scale_log2) {
    float added[2];
    weigh<Element, kShifted>(r_scores, shift, r_weights, added, scale_log2);
    const RowLanes passed = {{lanes_past_limit(0, added[0]), lanes_past_limit(1, added[1])}};
    if (passed.any()) {
      move_maxima<kShifted>(passed, r_scores, shift, r_output, scale_log2);
      weigh<Element, kShifted>(r_scores, shift, r_weights, added, scale_log2);
    }
    sum[0] += added[0];
    sum[1] += added[1];
    return passed;
  }

  // Of the rows of which a lane is set, to the maximum of all that the row has seen.
  template <bool kShifted, int kCount, int kOutputs>
  TESSERA_DEVICE void move_maxima(const RowLanes& lanes, const float (&r_scores)[kCount], const float (&shift)[2],
                                  float (&r_output)[kOutputs], float scale_log2) {
    move(0, lanes.row[0], highest_of<0>(r_scores) + (kShifted ? shift[0] : 0.0F), scale_log2);
    move(1, lanes.row[1], highest_of<1>(r_scores) + (kShifted ? shift[1] : 0.0F), scale_log2);
    rescale_output(r_output);
  }

 private:
  // Of a thread's weights in one update. Behind it one of them may be as large, which a 16-bit float holds.
  static constexpr float kLimit = 1024.0F;

  // And what the weights of this thread add up to. More than two chains would cost registers that three warpgroups do not have.
  template <class Element, bool kShifted, int kCount>
  TESSERA_DEVICE void weigh(const float (&r_scores)[kCount], const float (&shift)[2],
                            std::uint32_t (&r_weights)[kCount / 2], float (&added)[2], float scale_log2) const {
    float offset[2];
    float total[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float relative_to = kShifted ? maximum[r] - shift[r] : maximum[r];
      offset[r] = maximum[r] == -__builtin_huge_valf() ? 0.0F : relative_to * scale_log2;
    }
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float weight[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          weight[e] = ptx::exp2(fmaf(r_scores[4 * i + 2 * r + e], scale_log2, -offset[r]));
          total[r][e] = i == 0 ? weight[e] : total[r][e] + weight[e];
        }
        r_weights[2 * i + r] = ptx::pack<Element>(weight[0], weight[1]);
      }
    }
    added[0] = total[0][0] + total[0][1];
    added[1] = total[1][0] + total[1][1];
  }

  // One bit for each lane. A row without a maximum always asks for one.
  TESSERA_DEVICE unsigned lanes_past_limit(int row, float added) const {
    return __ballot_sync(0xFFFFFFFFU, added > kLimit || maximum[row] == -__builtin_huge_valf());
  }

  // Of this thread's scores in a row.
  template <int kRow, int kCount>
  TESSERA_DEVICE static float highest_of(const float (&r_scores)[kCount]) {
    float even = -__builtin_huge_valf();
    float odd = even;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      float& path = i % 2 == 0 ? even : odd;
      path = fmaxf(path, fmaxf(r_scores[4 * i + 2 * kRow], r_scores[4 * i + 2 * kRow + 1]));
    }
    return fmaxf(even, odd);
  }

  // To the maximum of the whole row, if one of its four lanes has passed the limit.
  TESSERA_DEVICE void move(int row, unsigned passed, float highest, float scale_log2) {
    float top = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFU, highest, 1));
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, 2));
    const unsigned first_lane = threadIdx.x % 32 / 4 * 4;
    const bool moves = (passed >> first_lane & 15U) != 0 && top > maximum[row];
    rescale[row] = moves ? ptx::exp2((maximum[row] - top) * scale_log2) : 1.0F;
    maximum[row] = moves ? top : maximum[row];
    sum[row] *= rescale[row];
  }
};

// The same for scores that may grow from one step to the next, as under a bias by distance: a row whose maximum moved in the last
// step looks for it before it weighs, so that its weights are computed once and not twice.
struct TrackingSoftmax : SteadySoftmax {
  TESSERA_DEVICE void reset() {
    OnlineSoftmax::reset();
    moved_ = {{~0U, ~0U}};
  }

  template <class Element, bool kShifted, int kCount, int kOutputs>
  TESSERA_DEVICE void update_weights(const float (&r_scores)[kCount], const float (&shift)[2],
                                     std::uint32_t (&r_weights)[kCount / 2], float (&r_output)[kOutputs],
                                     float scale_log2) {
    RowLanes tracked = {};
    if (moved_.any()) {
      const float before[2] = {maximum[0], maximum[1]};
      move_maxima<kShifted>(moved_, r_scores, shift, r_output, scale_log2);
      tracked = {
          {__ballot_sync(0xFFFFFFFFU, maximum[0] != before[0]), __ballot_sync(0xFFFFFFFFU, maximum[1] != before[1])}};
    }
    const RowLanes passed =
        SteadySoftmax::update_weights<Element, kShifted>(r_scores, shift, r_weights, r_output, scale_log2);
    moved_ = {{tracked.row[0] | passed.row[0], tracked.row[1] | passed.row[1]}};
  }

 private:
  RowLanes moved_;
};

}  // namespace tessera::tile
