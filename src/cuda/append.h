// append_keys on a GPU.
#pragma once

#include "tessera/attention.h"

namespace tessera::internal {

// The tensors are valid. Throws Error(unsupported) without CUDA.
void cuda_append_keys(const AppendTensors& tensors, void* stream);

}  // namespace tessera::internal
