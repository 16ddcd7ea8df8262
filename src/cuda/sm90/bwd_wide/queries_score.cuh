// The score program in a consumer warpgroup of the kernel for dQ of wide heads, see ../score_hooks.cuh. Rows are queries, columns
// keys.
#pragma once

#include "cuda/sm90/bwd_wide/queries_shared.cuh"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

template <BackwardQueriesConfig kConfig, class Element, std::uint32_t kFeatures>
class BackwardQueriesScore : public Features<kFeatures> {
 public:
  using Has = Features<kFeatures>;
  static constexpr int kScores = kConfig.tile_k / 2;
  // Whether weights are more than powers of two of scaled products.
  static constexpr bool kChangesWeights = Has::kSoftcap || Has::kFunction || Has::kAdds;
  // Whether what compute_weights() leaves is not P, but P times a derivative.
  static constexpr bool kHasDerivative = Has::kSoftcap || Has::kFunction;

  TESSERA_DEVICE BackwardQueriesScore(const BackwardQueriesParams& params, int warpgroup)
      : params_(params), warpgroup_(warpgroup) {}

  TESSERA_DEVICE void start_tile(const ForwardTile& work) {
    if constexpr (Has::kAlibi) {
      slope_log2_ = alibi_slope_log2(params_.score, sequence(work), work.head);
    }
  }

  // Products to P, times the derivative of softcap and function. Anything where a pair is hidden.
  TESSERA_DEVICE void compute_weights(float (&r_scores)[kScores], const ForwardTile& work, int first_key,
                                      const float (&lse_log2)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = row(work) + 8 * r;
      if constexpr (Has::kAlibi) {
        const int shift = params_.score.diagonal + (params_.score.bottom_right != 0 ? work.keys - work.queries : 0);
        const int smallest = work.first_query + warpgroup_ * 64 + shift - (first_key + kConfig.tile_k - 1);
        const AlibiFragment alibi(slope_log2_, query + shift - first_key - tile::fragment_column(), smallest,
                                  smallest + kConfig.tile_k - 1 + 63);
        if (alibi.linear()) {
          weights(r_scores, work, query, first_key, r,
                  [&](int column) { return alibi.linear_at(-static_cast<float>(column)) - lse_log2[r]; });
        } else {
          weights(r_scores, work, query, first_key, r,
                  [&](int column) { return alibi.at(-static_cast<float>(column)) - lse_log2[r]; });
        }
      } else {
        weights(r_scores, work, query, first_key, r, [&](int /*column*/) { return -lse_log2[r]; });
      }
    }
  }

 private:
  TESSERA_DEVICE static int sequence(const ForwardTile& work) { return work.valid - 1; }
  TESSERA_DEVICE int row(const ForwardTile& work) const {
    return work.first_query + warpgroup_ * 64 + tile::fragment_row();
  }

  // Of row r. `offset`: what is added to the logit of a column.
  template <class Offset>
  TESSERA_DEVICE void weights(float (&r_scores)[kScores], const ForwardTile& work, int query, int first_key, int r,
                              Offset&& offset) const {
    const float factor = Has::kFunction ? kLog2e : params_.scale_log2;
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const int column = 8 * (i / 2) + i % 2;
      float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
      const tile::Tangent logit = logit_of(score, work, query, first_key, column);
      const float weight = ptx::exp2(fmaf(logit.value, factor, offset(column)));
      score = kHasDerivative ? weight * logit.derivative : weight;
      if constexpr (Has::kFunction) {
        score = weight == 0.0F ? 0.0F : score;  // where it may have no derivative
      }
    }
  }

  // What softcap and function make of a product, and the derivative of the logit by the scaled product.
  TESSERA_DEVICE tile::Tangent logit_of(float x, const ForwardTile& work, int query, int first_key, int column) const {
    tile::Tangent logit{x, 1.0F};
    if constexpr (Has::kSoftcap) {
      logit.value = soft_cap<Element>(x * params_.score_scale);
      logit.derivative = fmaf(-logit.value, logit.value, 1.0F);
    }
    if constexpr (Has::kFunction) {
      const typename Has::Place place(params_.score.function, sequence(work), work.head);
      const int key = first_key + tile::fragment_column();
      const tile::Tangent result = tile::differentiate_function(
          logit.value * Has::function_scale(params_.score), place, min(query, work.queries - 1),
          max(min(key + column, work.keys - 1), 0), place.distance(query, key) + place.step(0, column));
      logit.value = result.value;
      logit.derivative *= result.derivative;
    }
    return logit;
  }

  const BackwardQueriesParams& params_;
  const int warpgroup_;
  float slope_log2_ = 0.0F;
};

}  // namespace tessera::sm90
