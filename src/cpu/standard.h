// The baseline: attention in three steps that write the score matrix to memory, as frameworks compute it without us.
#pragma once

#include "plan/impl.h"

namespace tessera::internal {

const Impl& standard_impl();

}  // namespace tessera::internal
