// The backward pass of heads of more than 128 columns.
#pragma once

#include "cuda/sm90/executable.h"

namespace tessera::internal {

// As backward_images().
std::vector<KernelImage> wide_backward_images(const Problem& problem);
std::unique_ptr<const Executable> make_wide_backward(const Problem& problem, const PlanOptions& options);

}  // namespace tessera::internal
