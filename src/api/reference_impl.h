#pragma once

#include "plan/impl.h"

namespace tessera::internal {

// src/reference knows nothing of plans; this is the adapter.
const Impl& reference_impl();

}  // namespace tessera::internal
