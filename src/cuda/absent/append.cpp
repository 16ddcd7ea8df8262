#include "cuda/append.h"

#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::internal {

void cuda_append_keys(const AppendTensors& /*tensors*/, void* /*stream*/) {
  throw Error(ErrorCode::unsupported, *cuda_unavailable());
}

}  // namespace tessera::internal
