// The host's C++ compiler, at run time.
#pragma once

#include "cuda/jit/compiler.h"

namespace tessera::internal {

// Compiles to shared objects for this CPU. It is the command in CXX, else the first of c++, g++ and clang++ in PATH; unavailable
// without one and with TESSERA_JIT=off. compile() throws Error(invalid_argument) with the compiler's words.
const KernelCompiler& host_compiler();

}  // namespace tessera::internal
