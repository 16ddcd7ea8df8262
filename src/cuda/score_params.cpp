#include "cuda/score_params.h"

#include <algorithm>

#include "cuda/tensors.h"

namespace tessera::internal {

namespace {

void set_alibi(ScoreParams& params, const Problem& problem, const ConstTensorView& slopes) {
  constexpr std::int64_t kFar = std::int64_t{1} << 30;  // where a float32 distance has long lost its units
  params.alibi = static_cast<const float*>(slopes.data);
  params.alibi_batch_stride = slopes.rank == 2 ? slopes.strides[0] : 0;
  params.alibi_head_stride = slopes.strides[slopes.rank == 2 ? 1 : 0];
  const Alignment& alignment = problem.mask.alignment();
  params.bottom_right = alignment.kind == Alignment::Kind::bottom_right ? 1 : 0;
  params.diagonal =
      params.bottom_right != 0 ? 0 : static_cast<std::int32_t>(std::clamp(alignment.resolve(0, 0), -kFar, kFar));
}

void set_bias(BiasParams& params, const ConstTensorView& bias) {
  params.data = bias.data;
  params.is_float32 = bias.dtype == DType::float32 ? 1 : 0;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    params.strides[axis] = bias.shape[axis] > 1 ? bias.strides[axis] : 0;
  }
  const auto pair_bytes = static_cast<std::uintptr_t>(2 * dtype_bytes(bias.dtype));
  const bool even = params.strides[0] % 2 == 0 && params.strides[1] % 2 == 0 && params.strides[2] % 2 == 0;
  params.in_pairs =
      params.strides[3] == 1 && even && reinterpret_cast<std::uintptr_t>(bias.data) % pair_bytes == 0 ? 1 : 0;
}

void set_dropout(DropoutParams& params, const Dropout& dropout) {
  const int threshold = dropout.threshold();
  params.threshold = static_cast<std::uint32_t>(threshold);
  params.kept_scale = kept_scale(dropout);
  params.seed_low = static_cast<std::uint32_t>(dropout.seed);
  params.seed_high = static_cast<std::uint32_t>(dropout.seed >> 32);
  params.batch_start = static_cast<std::uint32_t>(dropout.batch_start);
  params.head_start = static_cast<std::uint32_t>(dropout.head_start);
  params.query_start = dropout.query_start;
  params.query_stride = dropout.query_stride;
  params.key_start = dropout.key_start;
  params.key_stride = dropout.key_stride;
}

}  // namespace

std::uint32_t score_features(const Problem& problem) {
  std::uint32_t features = 0;
  const auto add = [&](bool present, ScoreFeature feature) {
    features |= present ? static_cast<std::uint32_t>(feature) : 0;
  };
  add(problem.softcap != 0, ScoreFeature::softcap);
  add(problem.alibi, ScoreFeature::alibi);
  add(problem.bias_shape.has_value(), ScoreFeature::bias);
  add(problem.dropout.threshold() != 0, ScoreFeature::dropout);
  add(problem.sinks, ScoreFeature::sinks);
  add(problem.score_function.has_value(), ScoreFeature::function);
  add(problem.score_function && problem.function_positions != Positions{}, ScoreFeature::positions);
  return features;
}

ScoreParams score_params(const Problem& problem, const ScoreTensors& tensors, int device,
                         const float* function_params) {
  ScoreParams params{};
  params.features = score_features(problem);
  params.scale = problem.softmax_scale();
  params.softcap = problem.softcap;
  if (problem.alibi) {
    require_on_device("alibi_slopes", tensors.alibi_slopes, device);
    set_alibi(params, problem, tensors.alibi_slopes);
  }
  if (problem.sinks) {
    require_on_device("sinks", tensors.sinks, device);
    params.sinks = static_cast<const float*>(tensors.sinks.data);
    params.sinks_stride = tensors.sinks.strides[0];
  }
  if (problem.bias_shape) {
    require_on_device("bias", tensors.bias, device);
    set_bias(params.bias, tensors.bias);
  }
  set_dropout(params.dropout, problem.dropout);
  const Positions& positions = problem.function_positions;
  params.function = {function_params,        positions.batch_start, positions.head_start, positions.query_start,
                     positions.query_stride, positions.key_start,   positions.key_stride};
  return params;
}

float kept_scale(const Dropout& dropout) {
  const int threshold = dropout.threshold();
  return threshold < 256 ? 256.0F / static_cast<float>(256 - threshold) : 0.0F;
}

bool has_plain_scores(const Problem& problem) { return score_features(problem) == 0 && problem.softmax_scale() > 0; }

}  // namespace tessera::internal
