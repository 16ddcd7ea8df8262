// Every refusal of bad input: what is checked once for a Problem and at each run for its tensors.
#pragma once

#include "tessera/attention.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Throws Error(invalid_argument) unless every tensor has the shape, dtype, device and strides that `problem` asks for.
void validate(const Problem& problem, const ForwardTensors& tensors, const Device& device);
void validate(const Problem& problem, const BackwardTensors& tensors, const Device& device);
void validate_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result);

}  // namespace tessera::internal
