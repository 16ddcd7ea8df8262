// What a score program adds to the Hopper kernels. Where a feature is absent its hook is empty when it is compiled.
//
// Products become logits in powers of two: softcap, a user's function, then bias and ALiBi. A softcap alone leaves tanh, which
// the softmax multiplies by softcap * log2(e) as it multiplies plain products by their scale; a function natural logits.
#pragma once

#include "cuda/ptx/registers.cuh"
#include "cuda/tile/dropout.cuh"
#include "cuda/tile/function.cuh"
#include "cuda/tile/program.h"

namespace tessera::sm90 {

template <std::uint32_t kFeatures>
struct Features {
  static constexpr bool has(ScoreFeature feature) { return (kFeatures & static_cast<std::uint32_t>(feature)) != 0; }
  static constexpr bool kSoftcap = has(ScoreFeature::softcap);
  static constexpr bool kAlibi = has(ScoreFeature::alibi);
  static constexpr bool kBias = has(ScoreFeature::bias);
  static constexpr bool kDropout = has(ScoreFeature::dropout);
  static constexpr bool kSinks = has(ScoreFeature::sinks);
  static constexpr bool kFunction = has(ScoreFeature::function);
  static constexpr bool kAdds = kAlibi || kBias;
  static constexpr bool kHasBound = (kFeatures & kBounded) != 0;
  static constexpr bool kFunctionAdds = kFunction && tile::kFunctionAdds;
  static constexpr bool kFunctionChanges = kFunction && !tile::kFunctionAdds;
  // Whether the derivative of a logit by its score is not 1.
  static constexpr bool kHasDerivative = kSoftcap || kFunctionChanges;

  using Place = tile::FunctionPlace<has(ScoreFeature::positions)>;
  // What a function takes, of what the softcap or the product leaves.
  TESSERA_DEVICE static float function_scale(const ScoreParams& params) {
    return kSoftcap ? params.softcap : params.scale;
  }
};

inline constexpr float kLog2e = 1.44269504088896341F;

// Of weights that dropout may keep; one over their scale.
TESSERA_DEVICE float kept_share(const ScoreParams& params) {
  return static_cast<float>(256 - params.dropout.threshold) / 256.0F;
}

template <class Element>
inline constexpr bool kRoundsToBfloat16 = false;
template <>
inline constexpr bool kRoundsToBfloat16<ptx::bfloat16> = true;

// The error of the instruction is below the rounding of bfloat16 scores, but not below that of float16 ones.
template <class Element>
TESSERA_DEVICE float soft_cap(float x) {
  if constexpr (kRoundsToBfloat16<Element>) {
    return ptx::tanh(x);
  } else {
    // Near 0 the difference would lose its digits.
    const float far = 1.0F - __fdividef(2.0F, ptx::exp2(2.0F * kLog2e * x) + 1.0F);
    return fabsf(x) < 0.05F ? fmaf(x * x * x, -1.0F / 3.0F, x) : far;
  }
}

// What softcap and a function that does more than add make of a product, and the derivative of the logit by the scaled product.
// `query` and `key` are in the sequence, `distance` is of the element.
template <class Element, std::uint32_t kFeatures>
TESSERA_DEVICE tile::Tangent logit_of(float product, float score_scale, const ScoreParams& params,
                                      const typename Features<kFeatures>::Place& place, int query, int key,
                                      float distance) {
  using Has = Features<kFeatures>;
  tile::Tangent logit{product, 1.0F};
  if constexpr (Has::kSoftcap) {
    logit.value = soft_cap<Element>(product * score_scale);
    logit.derivative = fmaf(-logit.value, logit.value, 1.0F);
  }
  if constexpr (Has::kFunctionChanges) {
    const tile::Tangent result =
        tile::differentiate_function(logit.value * Has::function_scale(params), place, query, key, distance);
    logit.value = result.value;
    logit.derivative *= result.derivative;
  }
  return logit;
}

// What a function that adds to scores adds, in powers of two. Of -0, which the compiler takes out of a sum.
template <class Place>
TESSERA_DEVICE float function_addend(const Place& place, int query, int key, float distance) {
  return kLog2e * tile::call_function(-0.0F, place, query, key, distance);
}

// ALiBi of a fragment of the backward kernels: -slope |query + diagonal - key| in powers of two. In a tile that lies on one side of
// the diagonal it is linear, and costs one multiply-add a score.
class AlibiFragment {
 public:
  // `distance`: query + diagonal - key of the thread's first element, smallest and largest that of the tile.
  TESSERA_DEVICE AlibiFragment(float slope_log2, int distance, int smallest, int largest)
      : slope_(slope_log2), distance_(static_cast<float>(distance)), linear_(smallest >= 0 || largest <= 0) {
    signed_slope_ = smallest >= 0 ? slope_log2 : -slope_log2;
  }

  TESSERA_DEVICE bool linear() const { return linear_; }
  // Of the element whose distance is `step` more than the first one's.
  TESSERA_DEVICE float linear_at(float step) const { return fmaf(-step, signed_slope_, linear_first()); }
  TESSERA_DEVICE float linear_first() const { return -signed_slope_ * distance_; }
  TESSERA_DEVICE float linear_step() const { return -signed_slope_; }
  TESSERA_DEVICE float at(float step) const { return -slope_ * fabsf(distance_ + step); }

 private:
  float slope_, signed_slope_, distance_;
  bool linear_;
};

TESSERA_DEVICE float alibi_slope_log2(const ScoreParams& params, int sequence, int head) {
  return kLog2e * __ldg(params.alibi + sequence * params.alibi_batch_stride + head * params.alibi_head_stride);
}

}  // namespace tessera::sm90
