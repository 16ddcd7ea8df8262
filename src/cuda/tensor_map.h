// The descriptor of a tensor that the copy engine reads: a CUtensorMap, for code that does not see the driver's headers.
#pragma once

namespace tessera {

struct alignas(64) TensorMap {
  unsigned char opaque[128];
};

}  // namespace tessera
