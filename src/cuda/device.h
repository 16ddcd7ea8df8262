// NVIDIA devices as the driver reports them. Everything here works, and says why there is nothing, on a machine without a
// driver and in a build without CUDA.
#pragma once

#include <optional>
#include <string>

#include "tessera/plan.h"

namespace tessera::internal {

// Why no CUDA Impl can run here: the build has none, there is no driver, or it finds no device. nullopt when one can.
std::optional<std::string> cuda_unavailable();

// Throws Error(invalid_argument) that names the index when there is no such device, Error(unsupported) without CUDA.
const CudaDeviceInfo& cuda_device(int index);

}  // namespace tessera::internal
