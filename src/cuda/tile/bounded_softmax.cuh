// Softmax over fragments of scores that a softcap bounds: weights are powers of two of the logits themselves, which float32 sums
// and bfloat16 weights hold. No maximum is looked for, nothing is rescaled, and no weight waits for the last score of its row:
// whoever computes the scores makes weights of them at once.
#pragma once

#include "cuda/tile/steady_softmax.cuh"

namespace tessera::tile {

struct BoundedSoftmax : OnlineSoftmax {
  static constexpr float kHidden = 0.0F;

  TESSERA_DEVICE void reset() {
    maximum[0] = maximum[1] = 0.0F;
    sum[0] = sum[1] = 0.0F;
  }

  // Of weights; as TrackingSoftmax::update_weights().
  template <class Element, bool /*kShifted*/, int kCount, int kOutputs>
  TESSERA_DEVICE void update_weights(const float (&r_scores)[kCount], const float (& /*shift*/)[2],
                                     std::uint32_t (&r_weights)[kCount / 2], float (& /*r_output*/)[kOutputs],
                                     float /*factor_log2*/) {
    float total[2][4];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& chain = total[e >> 1][2 * (i & 1) + (e & 1)];
        chain = i < 2 ? r_scores[4 * i + e] : chain + r_scores[4 * i + e];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += (total[r][0] + total[r][1]) + (total[r][2] + total[r][3]);
    }
    round_to<Element>(r_weights, r_scores);
  }
};

}  // namespace tessera::tile
