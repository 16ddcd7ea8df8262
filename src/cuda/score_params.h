// From a problem and its score tensors to what kernels take.
#pragma once

#include "cuda/tile/program.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Of ScoreFeature: the modifiers that the problem has.
std::uint32_t score_features(const Problem& problem);

// `function_params`: those of the problem's function in memory of this device. Throws Error(invalid_argument) that names the tensor
// when one is not memory of this device.
ScoreParams score_params(const Problem& problem, const ScoreTensors& tensors, int device, const float* function_params);

// What kept weights are multiplied by; 0 where all are dropped.
float kept_scale(const Dropout& dropout);

// Whether the plain kernels compute it: no modifier, and a scale above 0.
bool has_plain_scores(const Problem& problem);

}  // namespace tessera::internal
