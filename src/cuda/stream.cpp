#include "cuda/stream.h"

#include <map>
#include <mutex>

#include "cuda/device.h"
#include "cuda/driver.h"
#include "tessera/error.h"

namespace tessera::internal {

namespace {

CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
CUstream stream_of(void* handle) { return static_cast<CUstream>(handle); }
CUevent event_of(void* handle) { return static_cast<CUevent>(handle); }

// An event of a device whose time on the host's clock is known.
struct Epoch {
  CUevent event = nullptr;
  DeviceEvent::Clock::time_point time;
};

// Elapsed times are float32 milliseconds, so that an epoch serves for a minute: 4 microseconds are lost by then.
Epoch epoch_of(int device) {
  static std::mutex mutex;
  static std::map<int, Epoch> epochs;
  static std::map<int, CUstream> streams;
  const std::lock_guard lock(mutex);
  Epoch& epoch = epochs[device];
  const auto now = DeviceEvent::Clock::now();
  if (epoch.event != nullptr && now - epoch.time < std::chrono::minutes(1)) {
    return epoch;
  }
  const ContextScope context(device);
  CUstream& stream = streams[device];
  if (stream == nullptr) {
    check(driver().stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  }
  // The one before stays, since other threads may still compare with it: one in a minute.
  check(driver().event_create(&epoch.event, CU_EVENT_DEFAULT), "cuEventCreate");
  check(driver().event_record(epoch.event, stream), "cuEventRecord");
  check(driver().event_synchronize(epoch.event), "cuEventSynchronize");
  epoch.time = DeviceEvent::Clock::now();
  return epoch;
}

}  // namespace

DeviceEvent::DeviceEvent(int device) : device_(device) {
  const ContextScope context(device);
  CUevent event = nullptr;
  check(driver().event_create(&event, CU_EVENT_DEFAULT), "cuEventCreate");
  handle_ = event;
}

DeviceEvent::~DeviceEvent() {
  const ContextScope context(device_);
  driver().event_destroy(event_of(handle_));
}

void DeviceEvent::record(void* stream) {
  const ContextScope context(device_);
  check(driver().event_record(event_of(handle_), stream_of(stream)), "cuEventRecord");
}

void DeviceEvent::hold(int stream_device, void* stream) const {
  const ContextScope context(stream_device);
  check(driver().stream_wait_event(stream_of(stream), event_of(handle_), 0), "cuStreamWaitEvent");
}

bool DeviceEvent::reached() const {
  const ContextScope context(device_);
  const CUresult result = driver().event_query(event_of(handle_));
  if (result == CUDA_ERROR_NOT_READY) {
    return false;
  }
  check(result, "cuEventQuery");
  return true;
}

void DeviceEvent::synchronize() const {
  const ContextScope context(device_);
  check(driver().event_synchronize(event_of(handle_)), "cuEventSynchronize");
}

bool DeviceEvent::settle() const noexcept {
  try {
    synchronize();
    return true;
  } catch (const Error&) {
    return false;
  }
}

DeviceEvent::Clock::time_point DeviceEvent::time() const {
  const Epoch epoch = epoch_of(device_);
  const ContextScope context(device_);
  float milliseconds = 0;
  check(driver().event_elapsed(&milliseconds, epoch.event, event_of(handle_)), "cuEventElapsedTime");
  const std::chrono::duration<double, std::milli> elapsed(milliseconds);
  return epoch.time + std::chrono::duration_cast<Clock::duration>(elapsed);
}

CurrentDevice::CurrentDevice(int device) { check(driver().context_push(primary_context(device)), "cuCtxPushCurrent"); }

CurrentDevice::~CurrentDevice() {
  CUcontext popped = nullptr;
  driver().context_pop(&popped);
}

CopyStream::CopyStream(int device) : device_(device) {
  cuda_device(device);
  const ContextScope context(device);
  int least = 0;
  int greatest = 0;
  check(driver().stream_priorities(&least, &greatest), "cuCtxGetStreamPriorityRange");
  CUstream stream = nullptr;
  check(driver().stream_create_with_priority(&stream, CU_STREAM_NON_BLOCKING, greatest), "cuStreamCreateWithPriority");
  handle_ = stream;
}

CopyStream::~CopyStream() {
  const ContextScope context(device_);
  driver().stream_destroy(stream_of(handle_));
}

void CopyStream::copy(void* target, int target_device, const void* source, int source_device, std::size_t bytes) {
  const ContextScope context(device_);
  if (target_device == source_device) {
    check(driver().copy_async(address(target), address(source), bytes, stream_of(handle_)), "cuMemcpyAsync");
    return;
  }
  check(driver().copy_peer_async(address(target), primary_context(target_device), address(source),
                                 primary_context(source_device), bytes, stream_of(handle_)),
        "cuMemcpyPeerAsync");
}

void CopyStream::copy_to_host(void* host, const void* source, std::size_t bytes) {
  const ContextScope context(device_);
  check(driver().copy_async(address(host), address(source), bytes, stream_of(handle_)), "cuMemcpyAsync");
}

void CopyStream::copy_from_host(void* target, const void* host, std::size_t bytes) {
  const ContextScope context(device_);
  check(driver().copy_async(address(target), address(host), bytes, stream_of(handle_)), "cuMemcpyAsync");
}

void open_path(int device, int peer) {
  if (device == peer) {
    return;
  }
  CUdevice from = 0;
  CUdevice to = 0;
  int possible = 0;
  check(driver().device_get(&from, device), "cuDeviceGet");
  check(driver().device_get(&to, peer), "cuDeviceGet");
  check(driver().can_access_peer(&possible, from, to), "cuDeviceCanAccessPeer");
  if (possible == 0) {
    return;
  }
  const ContextScope context(device);
  const CUresult result = driver().enable_peer_access(primary_context(peer), 0);
  if (result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
    check(result, "cuCtxEnablePeerAccess");
  }
}

std::shared_ptr<std::byte> allocate_on_device(int device, std::int64_t bytes) {
  cuda_device(device);
  if (bytes == 0) {
    return nullptr;
  }
  const ContextScope context(device);
  CUdeviceptr memory = 0;
  check(driver().memory_allocate(&memory, static_cast<std::size_t>(bytes)), "cuMemAlloc");
  return {reinterpret_cast<std::byte*>(memory), [device](std::byte* pointer) {
            const ContextScope scope(device);
            driver().memory_free(address(pointer));
          }};
}

std::shared_ptr<std::byte> allocate_pinned(int device, std::int64_t bytes) {
  cuda_device(device);
  if (bytes == 0) {
    return nullptr;
  }
  const ContextScope context(device);
  void* memory = nullptr;
  check(driver().host_allocate(&memory, static_cast<std::size_t>(bytes)), "cuMemAllocHost");
  return {static_cast<std::byte*>(memory), [device](std::byte* pointer) {
            const ContextScope scope(device);
            driver().host_free(pointer);
          }};
}

void synchronize_stream(int device, void* stream) {
  const ContextScope context(device);
  check(driver().stream_synchronize(stream_of(stream)), "cuStreamSynchronize");
}

bool settle_stream(int device, void* stream) noexcept {
  try {
    synchronize_stream(device, stream);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace tessera::internal
