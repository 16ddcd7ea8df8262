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
    const float factor = Has::kFunctionChanges ? kLog2e : params_.scale_log2;
    const typename Has::Place place(params_.score.function, sequence(work), work.head);
    const int at_query = min(query, work.queries - 1);
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const int column = 8 * (i / 2) + i % 2;
      const int key = first_key + tile::fragment_column();
      const int at_key = max(min(key + column, work.keys - 1), 0);
      const float distance = place.distance(query, key) + place.step(0, column);
      float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
      const tile::Tangent logit =
          logit_of<Element, kFeatures>(score, params_.score_scale, params_.score, place, at_query, at_key, distance);
      float addend = offset(column);
      if constexpr (Has::kFunctionAdds) {
        addend += function_addend(place, at_query, at_key, distance);
      }
      const float weight = ptx::exp2(fmaf(logit.value, factor, addend));
      score = Has::kHasDerivative ? weight * logit.derivative : weight;
      if constexpr (Has::kFunctionChanges) {
        score = weight == 0.0F ? 0.0F : score;  // where it may have no derivative
      }
    }
  }

  const BackwardQueriesParams& params_;
  const int warpgroup_;
  float slope_log2_ = 0.0F;
};

}  // namespace tessera::sm90
