#include "cuda/stream.h"

#include "cuda/absent/fail.h"

namespace tessera::internal {

DeviceEvent::DeviceEvent(int /*device*/) { fail_without_cuda(); }
DeviceEvent::~DeviceEvent() = default;
void DeviceEvent::record(void* /*stream*/) { fail_without_cuda(); }
void DeviceEvent::hold(int /*stream_device*/, void* /*stream*/) const { fail_without_cuda(); }
bool DeviceEvent::reached() const { fail_without_cuda(); }
void DeviceEvent::synchronize() const { fail_without_cuda(); }
bool DeviceEvent::settle() const noexcept { return false; }
DeviceEvent::Clock::time_point DeviceEvent::time() const { fail_without_cuda(); }

CurrentDevice::CurrentDevice(int /*device*/) { fail_without_cuda(); }
CurrentDevice::~CurrentDevice() = default;

CopyStream::CopyStream(int /*device*/) { fail_without_cuda(); }
CopyStream::~CopyStream() = default;
void CopyStream::copy(void* /*target*/, int /*target_device*/, const void* /*source*/, int /*source_device*/,
                      std::size_t /*bytes*/) {
  fail_without_cuda();
}
void CopyStream::copy_to_host(void* /*host*/, const void* /*source*/, std::size_t /*bytes*/) { fail_without_cuda(); }
void CopyStream::copy_from_host(void* /*target*/, const void* /*host*/, std::size_t /*bytes*/) { fail_without_cuda(); }

void open_path(int /*device*/, int /*peer*/) { fail_without_cuda(); }
std::shared_ptr<std::byte> allocate_on_device(int /*device*/, std::int64_t /*bytes*/) { fail_without_cuda(); }
std::shared_ptr<std::byte> allocate_pinned(int /*device*/, std::int64_t /*bytes*/) { fail_without_cuda(); }
void synchronize_stream(int /*device*/, void* /*stream*/) { fail_without_cuda(); }
bool settle_stream(int /*device*/, void* /*stream*/) noexcept { return false; }

}  // namespace tessera::internal
