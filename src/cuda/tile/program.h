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
  function = 32,   // of a user
  positions = 64,  // of the function, where they are not those of the sequence
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
  std::int32_t in_pairs;    // the elements of an even key and of the one after it can be read at once
};

// Of a user's function, see Positions in tessera/score_function.h.
struct FunctionParams {
  const float* params;
  std::int32_t batch_start, head_start;
  std::int32_t query_start, query_stride;
  std::int32_t key_start, key_stride;
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
  FunctionParams function;
};

// Those that change a score by more than a factor.
inline constexpr std::uint32_t kTransforms =
    static_cast<std::uint32_t>(ScoreFeature::softcap) | static_cast<std::uint32_t>(ScoreFeature::alibi) |
    static_cast<std::uint32_t>(ScoreFeature::bias) | static_cast<std::uint32_t>(ScoreFeature::function);

// Beside the modifiers of a Hopper kernel that is compiled when it is first used: the code of a step stands in it once, which
// takes half the time to compile. Kernels with modifiers are made so in any case.
inline constexpr std::uint32_t kCompact = 1U << 31;
// Beside kBounded, without dropout: the code of a step stands in the kernel several times, as in those without a score program. That
// is 1 to 6 % faster and takes twice as long to compile: for kernels of a build.
inline constexpr std::uint32_t kUnrolledWalk = 1U << 28;
// Beside the modifiers of a kernel of the sm80 family with a function: it writes float32, else the inputs' dtype. Others read that
// at run time.
inline constexpr std::uint32_t kFloat32Output = 1U << 30;
// Beside the modifiers of a Hopper forward kernel: its softcap is at most kMostBoundedSoftcap and nothing but it changes scores, so
// that powers of two of the logits are far from the ends of float32 and bfloat16, also times values and summed over keys.
inline constexpr std::uint32_t kBounded = 1U << 29;
inline constexpr float kMostBoundedSoftcap = 50.0F;

// The modifiers of a kernel: known when it is compiled, so that absent ones cost nothing, or read from its parameters.
template <std::uint32_t kFeatures>
struct StaticProgram {
  static constexpr bool has(const ScoreParams& /*params*/, ScoreFeature feature) {
    return (kFeatures & static_cast<std::uint32_t>(feature)) != 0;
  }
  static constexpr bool kFunction = (kFeatures & static_cast<std::uint32_t>(ScoreFeature::function)) != 0;
  static constexpr bool kMoved = (kFeatures & static_cast<std::uint32_t>(ScoreFeature::positions)) != 0;
  static constexpr bool kFloat32 = (kFeatures & kFloat32Output) != 0;
  static constexpr bool kMayDrop = (kFeatures & static_cast<std::uint32_t>(ScoreFeature::dropout)) != 0;
  // Whether scores become logits in a step of their own. Without one the softmax multiplies them, by a scale above 0.
  static constexpr bool transforms(const ScoreParams& /*params*/) { return (kFeatures & kTransforms) != 0; }
};
// A function is in a kernel when it is compiled.
struct RuntimeProgram {
  static constexpr bool kFunction = false;
  static constexpr bool kMoved = false;
  static constexpr bool kFloat32 = false;
  static constexpr bool kMayDrop = true;
  static constexpr bool has(const ScoreParams& params, ScoreFeature feature) {
    return (params.features & static_cast<std::uint32_t>(feature)) != 0;
  }
  static constexpr bool transforms(const ScoreParams& params) {
    return (params.features & kTransforms) != 0 || !(params.scale > 0);
  }
};

}  // namespace tessera
