// What everything that needs a GPU does in a build without CUDA.
#pragma once

#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::internal {

[[noreturn]] inline void fail_without_cuda() { throw Error(ErrorCode::unsupported, *cuda_unavailable()); }

}  // namespace tessera::internal
