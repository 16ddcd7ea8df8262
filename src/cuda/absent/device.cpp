// In place of src/cuda in a build without CUDA: why there is none.
#include "cuda/device.h"

#include "tessera/error.h"

namespace tessera {

namespace internal {

std::optional<std::string> cuda_unavailable() { return "this build has no CUDA: " TESSERA_CUDA_ABSENT; }

const CudaDeviceInfo& cuda_device(int /*index*/) { throw Error(ErrorCode::unsupported, *cuda_unavailable()); }

}  // namespace internal

CudaInfo cuda_info() {
  CudaInfo info;
  info.unavailable = *internal::cuda_unavailable();
  return info;
}

}  // namespace tessera
