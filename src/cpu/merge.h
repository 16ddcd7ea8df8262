#pragma once

#include "tessera/attention.h"

namespace tessera::internal {

void cpu_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result);

}  // namespace tessera::internal
