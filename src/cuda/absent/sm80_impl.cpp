#include "cuda/sm80_impl.h"

#include "cuda/absent/absent_impl.h"

namespace tessera::internal {

const Impl& sm80_impl() {
  static const AbsentImpl impl(
      "sm80", "NVIDIA GPUs since Ampere (compute capability 8.0): warp-wide matrix products and asynchronous copies");
  return impl;
}

}  // namespace tessera::internal
