#include "cuda/memory.h"

#include "cuda/absent/fail.h"

namespace tessera::internal {

DeviceMemory::DeviceMemory(int /*device*/, std::size_t /*bytes*/) { fail_without_cuda(); }
DeviceMemory::DeviceMemory(DeviceMemory&& /*other*/) noexcept {}
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& /*other*/) noexcept { return *this; }
DeviceMemory::~DeviceMemory() = default;
void DeviceMemory::copy_from(const void* /*host*/, std::size_t /*bytes*/) { fail_without_cuda(); }
void DeviceMemory::copy_to(void* /*host*/, std::size_t /*bytes*/) const { fail_without_cuda(); }
void DeviceMemory::fill(std::uint8_t /*byte*/) { fail_without_cuda(); }

DeviceStream::DeviceStream(int /*device*/) { fail_without_cuda(); }
DeviceStream::~DeviceStream() = default;
void DeviceStream::synchronize() const { fail_without_cuda(); }
double DeviceStream::seconds(const std::function<void()>& /*work*/) const { fail_without_cuda(); }
void DeviceStream::capture(const std::function<void()>& /*work*/) { fail_without_cuda(); }
void DeviceStream::replay() const { fail_without_cuda(); }

std::int64_t device_free_bytes(int /*device*/) { fail_without_cuda(); }
double measure_matrix_rate(int /*device*/) { fail_without_cuda(); }
double measure_copy_rate(int /*device*/) { fail_without_cuda(); }

}  // namespace tessera::internal
