// The Impl for every GPU of compute capability 8.0 and up: warp-wide matrix products fed by asynchronous copies.
#pragma once

#include "plan/impl.h"

namespace tessera::internal {

const Impl& sm80_impl();

}  // namespace tessera::internal
