// The executables of both passes on Hopper.
#pragma once

#include "cuda/executable.h"

namespace tessera::internal {

std::unique_ptr<const Executable> make_forward(const Problem& problem, const PlanOptions& options);
std::unique_ptr<const Executable> make_backward(const Problem& problem, const PlanOptions& options);
// Why the build has no kernel for the problem, or nullopt.
std::optional<std::string> forward_missing(const Problem& problem, const PlanOptions& options);
std::optional<std::string> backward_missing(const Problem& problem, const PlanOptions& options);

}  // namespace tessera::internal
