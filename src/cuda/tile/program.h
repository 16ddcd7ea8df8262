// What happens to a score between the two matrix products, as kernels take it: which modifiers are present, and their data.
#pragma once

#include <cstdint>

namespace tessera {

enum class ScoreFeature : std::uint32_t {
  softcap = 1,
  alibi = 2,
  bias = 4,
  dropout = 8,
  sinks = 16,
};

// Dropout of one pass, see Dropout in tessera/problem.h: positions of the Problem become those of the whole.
struct DropoutParams {
  std::uint32_t threshold;  // a weight is dropped when its byte is below it
  float kept_scale;         // 256 / (256 - threshold)
  std::uint32_t seed_low, seed_high;
  std::uint32_t batch_start, head_start;
  std::int64_t query_start, query_stride;
  std::int64_t key_start, key_stride;
};

struct BiasParams {
  const void* data;
  std::int64_t strides[4];  // of batch, head, query and key, in elements; 0 along a broadcast extent
  std::int32_t is_float32;  // else it has the inputs' dtype
};

struct ScoreParams {
  std::uint32_t features;  // of ScoreFeature
  float scale;             // of the products, before the softcap
  float softcap;
  const float* alibi;  // slopes
  std::int64_t alibi_batch_stride, alibi_head_stride;
  const float* sinks;  // one logit for each query head
  std::int64_t sinks_stride;
  // ALiBi: query i stands at key i + diagonal, and keys - queries further on when `bottom_right`.
  std::int32_t diagonal, bottom_right;
  BiasParams bias;
  DropoutParams dropout;
};

// Those that change a score by more than a factor.
inline constexpr std::uint32_t kTransforms = static_cast<std::uint32_t>(ScoreFeature::softcap) |
                                             static_cast<std::uint32_t>(ScoreFeature::alibi) |
                                             static_cast<std::uint32_t>(ScoreFeature::bias);

// The modifiers of a kernel: known when it is compiled, so that absent ones cost nothing, or read from its parameters.
template <std::uint32_t kFeatures>
struct StaticProgram {
  static constexpr bool has(const ScoreParams& /*params*/, ScoreFeature feature) {
    return (kFeatures & static_cast<std::uint32_t>(feature)) != 0;
  }
  // Whether scores become logits in a step of their own. Without one the softmax multiplies them, by a scale above 0.
  static constexpr bool transforms(const ScoreParams& /*params*/) { return (kFeatures & kTransforms) != 0; }
};
struct RuntimeProgram {
  static constexpr bool has(const ScoreParams& params, ScoreFeature feature) {
    return (params.features & static_cast<std::uint32_t>(feature)) != 0;
  }
  static constexpr bool transforms(const ScoreParams& params) {
    return (params.features & kTransforms) != 0 || !(params.scale > 0);
  }
};

}  // namespace tessera
