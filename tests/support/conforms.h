// The numerics contract as an expectation.
#pragma once

#include <vector>

#include "cli/problem_tensors.h"
#include "support/targets.h"

namespace tessera::test {

// Both passes of the problem on each target (the forward pass alone where the first target has no other), every output within its bound of the double-precision oracle.
void expect_conforms(const Problem& problem, const cli::TensorOptions& tensors, const std::vector<Target>& targets,
                     bool deterministic = true);

}  // namespace tessera::test
