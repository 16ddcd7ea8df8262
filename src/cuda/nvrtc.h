// NVIDIA's run-time compiler, loaded when it is first needed: nothing links against it.
#pragma once

#include "cuda/jit/compiler.h"

namespace tessera::internal {

// Looked for among the libraries that are loaded, where the loader looks, in CUDA_HOME and CUDA_PATH, and among the Python
// packages beside the libraries that are loaded or in VIRTUAL_ENV. Unavailable with TESSERA_JIT=off.
const KernelCompiler& nvrtc();

}  // namespace tessera::internal
