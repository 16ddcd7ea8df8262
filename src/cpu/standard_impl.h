#pragma once

#include "plan/impl.h"

namespace tessera::internal {

// The three-step algorithm that materialises S and P, on OpenBLAS: the baseline.
const Impl& standard_impl();

}  // namespace tessera::internal
