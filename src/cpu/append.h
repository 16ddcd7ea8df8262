// append_keys on the CPU.
#pragma once

#include "tessera/attention.h"

namespace tessera::internal {

// The tensors are valid. Throws Error(invalid_argument) that names the length or the page that is not, before it writes.
void cpu_append_keys(const AppendTensors& tensors);

}  // namespace tessera::internal
