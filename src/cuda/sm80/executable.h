// The executables of both passes of the sm80 family.
#pragma once

#include "cuda/executable.h"

namespace tessera::internal {

std::unique_ptr<const Executable> make_sm80_forward(const Problem& problem, const PlanOptions& options);
std::unique_ptr<const Executable> make_sm80_backward(const Problem& problem, const PlanOptions& options);
// Why the build has no kernel for the problem, or nullopt.
std::optional<std::string> sm80_forward_missing(const Problem& problem, const PlanOptions& options);
std::optional<std::string> sm80_backward_missing(const Problem& problem, const PlanOptions& options);

}  // namespace tessera::internal
