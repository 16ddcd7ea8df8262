#pragma once

#include "tessera/attention.h"

namespace tessera::internal {

// threads: 0 for OpenMP's default.
void cpu_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result, int threads);

}  // namespace tessera::internal
