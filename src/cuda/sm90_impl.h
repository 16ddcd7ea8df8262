// The Impl for GPUs of compute capability 9.0 (Hopper): warpgroup matrix products and bulk tensor copies.
#pragma once

#include "plan/impl.h"

namespace tessera::internal {

const Impl& sm90_impl();

}  // namespace tessera::internal
