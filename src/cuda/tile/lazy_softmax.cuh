// Online softmax that seldom rescales: weights are powers of two relative to a maximum that is only replaced when some row of
// the warp has passed it by 2^8. Float32 sums and 16-bit weights keep their relative precision up to there.
#pragma once

#include "cuda/tile/softmax.cuh"

namespace tessera::tile {

struct LazySoftmax : OnlineSoftmax {
  // Replaces scores by weights 2^(factor (s - maximum)); returns whether the warp has to rescale what came before.
  template <int kCount>
  TESSERA_DEVICE bool update(float (&r_scores)[kCount], float factor_log2) {
    constexpr float kInfinity = __builtin_huge_valf();
    constexpr float kSlack = 8.0F;
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest[2];
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
        const float pair = fmaxf(r_scores[4 * i + 2 * r], r_scores[4 * i + 2 * r + 1]);
        highest[i % 2] = i < 2 ? pair : fmaxf(highest[i % 2], pair);
      }
      top[r] = fmaxf(fmaxf(highest[0], highest[1]), maximum[r]);
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFU, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFU, top[r], 2));
    }
    const bool passed = (top[0] - maximum[0]) * factor_log2 > kSlack || (top[1] - maximum[1]) * factor_log2 > kSlack;
    const bool replaced = __any_sync(0xFFFFFFFFU, passed);
    if (replaced) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        rescale[r] = top[r] == -kInfinity ? 1.0F : ptx::exp2((maximum[r] - top[r]) * factor_log2);
        maximum[r] = top[r];
        sum[r] *= rescale[r];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float offset = maximum[r] == -kInfinity ? 0.0F : maximum[r] * factor_log2;
      float total[2] = {};
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = r_scores[4 * i + 2 * r + e];
          score = ptx::exp2(fmaf(score, factor_log2, -offset));
          total[e] += score;
        }
      }
      sum[r] += total[0] + total[1];
    }
    return replaced;
  }
};

}  // namespace tessera::tile
