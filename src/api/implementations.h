// The list of implementations.
#pragma once

#include <span>

#include "plan/impl.h"

namespace tessera::internal {

// In order of preference; those for GPUs come first.
std::span<const Impl* const> all_implementations();
// Those for the CPU.
std::span<const Impl* const> cpu_implementations();

}  // namespace tessera::internal
