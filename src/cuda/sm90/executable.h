// The executables of both passes on Hopper.
#pragma once

#include <vector>

#include "cuda/executable.h"

namespace tessera::internal {

std::unique_ptr<const Executable> make_forward(const Problem& problem, const PlanOptions& options);
std::unique_ptr<const Executable> make_backward(const Problem& problem, const PlanOptions& options);
// Why the build has no kernel for the problem, or nullopt.
std::optional<std::string> forward_missing(const Problem& problem, const PlanOptions& options);
std::optional<std::string> backward_missing(const Problem& problem, const PlanOptions& options);

// What a plan for the problem loads: images of the tables, in the build or to be compiled; none where it would lack one. No device
// is asked.
std::vector<KernelImage> forward_images(const Problem& problem);
std::vector<KernelImage> backward_images(const Problem& problem);

}  // namespace tessera::internal
