// A user's score function in the sources of kernels.
#pragma once

#include <string>

#include "tessera/problem.h"

namespace tessera::internal {

// What stands before a kernel in its translation unit: the function's text, with its own name and line numbers, and the calls of
// it. Empty without a function.
std::string function_source(const Problem& problem);

// "_function_" and the first digits of the text's SHA-256, for names of images: what is compiled does not depend on the
// parameters. Empty without a function.
std::string function_suffix(const Problem& problem);

}  // namespace tessera::internal
