// Softmax over fragments of scores that a softcap bounds: weights are powers of two of the logits themselves, which float32 sums
// and bfloat16 weights hold. No maximum is looked for, nothing is rescaled, and no weight waits for the last score of its row.
#pragma once

#include "cuda/tile/steady_softmax.cuh"

namespace tessera::tile {

// `Cap` makes weights of products: near(s), an odd polynomial that grows with s and is exact up to some magnitude; anywhere(s),
// which takes the unit of tanh as well as that of 2^x; and the weights at both ends of the polynomial's range, least() and most().
//
// Nobody compares scores with that range. A score above it shows in the sum of a thread's weights, which is then more than most();
// what is below it has weights below least(), which do not count beside a sum that is kSignificant times as large. Where a sum
// does not lie between the two, all weights of the warp are computed again.
struct BoundedSoftmax : OnlineSoftmax {
  static constexpr float kHidden = -3.402823466e38F;  // the polynomial of which is -inf; scores of -inf are not hidden

  TESSERA_DEVICE void reset() {
    maximum[0] = maximum[1] = 0.0F;
    sum[0] = sum[1] = 0.0F;
    far_ = false;
  }

  template <class Element, class Cap, int kCount>
  TESSERA_DEVICE void update_weights(const float (&r_scores)[kCount], std::uint32_t (&r_weights)[kCount / 2],
                                     const Cap& cap) {
    float added[2];
    bool near = false;
    if (!far_) {
      weigh<Element>(r_scores, r_weights, added, [&cap](float score) { return cap.near(score); });
      near = lies_between(added, cap);
    }
    if (!near) {
      weigh<Element>(r_scores, r_weights, added, [&cap](float score) {
        float weight = cap.anywhere(score);
        ptx::pin(weight);  // left to itself the compiler skips it for hidden scores one by one
        return score == kHidden ? 0.0F : weight;
      });
      near = lies_between(added, cap);
    }
    far_ = !near;
    sum[0] += added[0];
    sum[1] += added[1];
  }

 private:
  static constexpr float kSignificant = 16384.0F;

  template <class Cap>
  TESSERA_DEVICE static bool lies_between(const float (&added)[2], const Cap& cap) {
    const float least = kSignificant * cap.least();
    const float most = cap.most();
    return __all_sync(0xFFFFFFFFU, fminf(added[0], added[1]) >= least && fmaxf(added[0], added[1]) <= most) != 0;
  }

  template <class Element, class Weight, int kCount>
  TESSERA_DEVICE static void weigh(const float (&r_scores)[kCount], std::uint32_t (&r_weights)[kCount / 2],
                                   float (&added)[2], Weight weight_of) {
    float total[2][2];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float weight[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          weight[e] = weight_of(r_scores[4 * i + 2 * r + e]);
          total[r][e] = i == 0 ? weight[e] : total[r][e] + weight[e];
        }
        r_weights[2 * i + r] = ptx::pack<Element>(weight[0], weight[1]);
      }
    }
    added[0] = total[0][0] + total[0][1];
    added[1] = total[1][0] + total[1][1];
  }

  bool far_;  // the last scores were not all within the polynomial's range
};

}  // namespace tessera::tile
