// The list of implementations, in the order in which plans try them.
#pragma once

#include <span>

#include "plan/impl.h"

namespace tessera::internal {

std::span<const Impl* const> all_implementations();

}  // namespace tessera::internal
