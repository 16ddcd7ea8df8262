#include "cuda/sm90_impl.h"

#include "cuda/absent/absent_impl.h"

namespace tessera::internal {

const Impl& sm90_impl() {
  static const AbsentImpl impl(
      "sm90", "NVIDIA Hopper (compute capability 9.0): warpgroup matrix products and bulk tensor copies");
  return impl;
}

}  // namespace tessera::internal
