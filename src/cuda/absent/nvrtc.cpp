#include "cuda/nvrtc.h"

#include "cuda/jit/unavailable.h"

namespace tessera::internal {

const KernelCompiler& nvrtc() {
  static const UnavailableCompiler absent("this build has no CUDA");
  return absent;
}

}  // namespace tessera::internal
