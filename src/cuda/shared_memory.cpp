#include "cuda/shared_memory.h"

#include <cstring>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/stream.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kAllocationUnit = std::int64_t{2} << 20;

template <class Handle>
SharedKey key_of(const Handle& handle) {
  static_assert(sizeof(Handle) == sizeof(SharedKey));
  SharedKey key;
  std::memcpy(key.data(), &handle, sizeof handle);
  return key;
}

template <class Handle>
Handle handle_of(const SharedKey& key) {
  Handle handle{};
  std::memcpy(&handle, key.data(), sizeof handle);
  return handle;
}

}  // namespace

std::shared_ptr<std::byte> allocate_shared(int device, std::int64_t bytes, SharedKey& key) {
  std::shared_ptr<std::byte> memory = allocate_on_device(device, round_up(bytes, kAllocationUnit));
  const ContextScope context(device);
  CUipcMemHandle handle{};
  check(driver().share_memory(&handle, reinterpret_cast<CUdeviceptr>(memory.get())), "cuIpcGetMemHandle");
  key = key_of(handle);
  return memory;
}

OpenedMemory::OpenedMemory(int device, const SharedKey& key) : device_(device) {
  const ContextScope context(device);
  CUdeviceptr memory = 0;
  check(driver().open_shared_memory(&memory, handle_of<CUipcMemHandle>(key), CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
        "cuIpcOpenMemHandle");
  data_ = reinterpret_cast<std::byte*>(memory);
}

OpenedMemory::~OpenedMemory() {
  const ContextScope context(device_);
  driver().close_shared_memory(reinterpret_cast<CUdeviceptr>(data_));
}

SharedEvent::SharedEvent(int device) : device_(device) {
  const ContextScope context(device);
  CUevent event = nullptr;
  check(driver().event_create(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING), "cuEventCreate");
  handle_ = event;
}

SharedEvent::SharedEvent(int device, const SharedKey& key) : device_(device) {
  const ContextScope context(device);
  CUevent event = nullptr;
  check(driver().open_shared_event(&event, handle_of<CUipcEventHandle>(key)), "cuIpcOpenEventHandle");
  handle_ = event;
}

SharedEvent::~SharedEvent() {
  const ContextScope context(device_);
  driver().event_destroy(static_cast<CUevent>(handle_));
}

SharedKey SharedEvent::key() const {
  const ContextScope context(device_);
  CUipcEventHandle handle{};
  check(driver().share_event(&handle, static_cast<CUevent>(handle_)), "cuIpcGetEventHandle");
  return key_of(handle);
}

void SharedEvent::record(void* stream) {
  const ContextScope context(device_);
  check(driver().event_record(static_cast<CUevent>(handle_), static_cast<CUstream>(stream)), "cuEventRecord");
}

bool SharedEvent::reached() const {
  const ContextScope context(device_);
  const CUresult result = driver().event_query(static_cast<CUevent>(handle_));
  if (result == CUDA_ERROR_NOT_READY) {
    return false;
  }
  check(result, "cuEventQuery");
  return true;
}

}  // namespace tessera::internal
