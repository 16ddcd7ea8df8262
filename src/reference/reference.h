// The oracle: attention in double precision, as the textbook writes it, with every feature of Problem.
//
// Masks are evaluated element by element from their definition, never through a TileSchedule, so that this judges both.
#pragma once

#include "tessera/plan.h"

namespace tessera::internal {

// `problem` has key_lengths, not lengths_in_tensors.
void reference_forward(const Problem& problem, const ForwardTensors& tensors);
void reference_backward(const Problem& problem, const BackwardTensors& tensors);

}  // namespace tessera::internal
