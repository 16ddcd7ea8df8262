#pragma once

#include "plan/impl.h"

namespace tessera::internal {

// FlashAttention (Dao et al. 2022, Algorithms 1, 2 and 4; Dao 2023 for the loop order) on CPU vector units.
const Impl& flash_impl();

}  // namespace tessera::internal
