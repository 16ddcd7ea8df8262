#include "cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "tessera/error.h"

namespace tessera::internal {

namespace {

struct Loaded {
  Driver driver{};
  std::optional<std::string> missing;
};

#define TESSERA_SYMBOL_TEXT(name) #name
#define TESSERA_SYMBOL(name) TESSERA_SYMBOL_TEXT(name)  // cuda.h renames functions to their newest versions

Loaded load() {
  Loaded loaded;
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    loaded.missing = "there is no NVIDIA driver (libcuda.so.1 was not found)";
    return loaded;
  }
  const auto bind = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr && !loaded.missing) {
      loaded.missing = std::string("the NVIDIA driver is too old: it has no ") + name;
    }
  };
  Driver& d = loaded.driver;
  bind(d.init, TESSERA_SYMBOL(cuInit));
  bind(d.driver_version, TESSERA_SYMBOL(cuDriverGetVersion));
  bind(d.error_string, TESSERA_SYMBOL(cuGetErrorString));
  bind(d.device_count, TESSERA_SYMBOL(cuDeviceGetCount));
  bind(d.device_get, TESSERA_SYMBOL(cuDeviceGet));
  bind(d.device_name, TESSERA_SYMBOL(cuDeviceGetName));
  bind(d.device_attribute, TESSERA_SYMBOL(cuDeviceGetAttribute));
  bind(d.device_total_memory, TESSERA_SYMBOL(cuDeviceTotalMem));
  bind(d.primary_context_retain, TESSERA_SYMBOL(cuDevicePrimaryCtxRetain));
  bind(d.context_push, TESSERA_SYMBOL(cuCtxPushCurrent));
  bind(d.context_pop, TESSERA_SYMBOL(cuCtxPopCurrent));
  bind(d.module_load, TESSERA_SYMBOL(cuModuleLoadData));
  bind(d.module_function, TESSERA_SYMBOL(cuModuleGetFunction));
  bind(d.function_attribute, TESSERA_SYMBOL(cuFuncGetAttribute));
  bind(d.function_set_attribute, TESSERA_SYMBOL(cuFuncSetAttribute));
  bind(d.launch, TESSERA_SYMBOL(cuLaunchKernelEx));
  bind(d.encode_tensor_map, TESSERA_SYMBOL(cuTensorMapEncodeTiled));
  bind(d.pointer_attributes, TESSERA_SYMBOL(cuPointerGetAttributes));
  bind(d.memory_allocate, TESSERA_SYMBOL(cuMemAlloc));
  bind(d.memory_free, TESSERA_SYMBOL(cuMemFree));
  bind(d.memory_allocate_from_pool, TESSERA_SYMBOL(cuMemAllocFromPoolAsync));
  bind(d.memory_free_async, TESSERA_SYMBOL(cuMemFreeAsync));
  bind(d.pool_create, TESSERA_SYMBOL(cuMemPoolCreate));
  bind(d.pool_set_attribute, TESSERA_SYMBOL(cuMemPoolSetAttribute));
  bind(d.memory_info, TESSERA_SYMBOL(cuMemGetInfo));
  bind(d.host_allocate, TESSERA_SYMBOL(cuMemAllocHost));
  bind(d.host_free, TESSERA_SYMBOL(cuMemFreeHost));
  bind(d.copy_async, TESSERA_SYMBOL(cuMemcpyAsync));
  bind(d.copy_peer_async, TESSERA_SYMBOL(cuMemcpyPeerAsync));
  bind(d.can_access_peer, TESSERA_SYMBOL(cuDeviceCanAccessPeer));
  bind(d.enable_peer_access, TESSERA_SYMBOL(cuCtxEnablePeerAccess));
  bind(d.copy_to_device, TESSERA_SYMBOL(cuMemcpyHtoD));
  bind(d.copy_to_host, TESSERA_SYMBOL(cuMemcpyDtoH));
  bind(d.copy_on_device_async, TESSERA_SYMBOL(cuMemcpyDtoDAsync));
  bind(d.memory_set, TESSERA_SYMBOL(cuMemsetD8));
  bind(d.memory_set_async, TESSERA_SYMBOL(cuMemsetD8Async));
  bind(d.context_synchronize, TESSERA_SYMBOL(cuCtxSynchronize));
  bind(d.stream_create, TESSERA_SYMBOL(cuStreamCreate));
  bind(d.stream_create_with_priority, TESSERA_SYMBOL(cuStreamCreateWithPriority));
  bind(d.stream_priorities, TESSERA_SYMBOL(cuCtxGetStreamPriorityRange));
  bind(d.stream_wait_event, TESSERA_SYMBOL(cuStreamWaitEvent));
  bind(d.stream_destroy, TESSERA_SYMBOL(cuStreamDestroy));
  bind(d.stream_synchronize, TESSERA_SYMBOL(cuStreamSynchronize));
  bind(d.capture_begin, TESSERA_SYMBOL(cuStreamBeginCapture));
  bind(d.capture_end, TESSERA_SYMBOL(cuStreamEndCapture));
  bind(d.graph_instantiate, TESSERA_SYMBOL(cuGraphInstantiate));
  bind(d.graph_destroy, TESSERA_SYMBOL(cuGraphDestroy));
  bind(d.graph_exec_destroy, TESSERA_SYMBOL(cuGraphExecDestroy));
  bind(d.graph_launch, TESSERA_SYMBOL(cuGraphLaunch));
  bind(d.event_create, TESSERA_SYMBOL(cuEventCreate));
  bind(d.event_destroy, TESSERA_SYMBOL(cuEventDestroy));
  bind(d.event_record, TESSERA_SYMBOL(cuEventRecord));
  bind(d.event_query, TESSERA_SYMBOL(cuEventQuery));
  bind(d.event_synchronize, TESSERA_SYMBOL(cuEventSynchronize));
  bind(d.event_elapsed, TESSERA_SYMBOL(cuEventElapsedTime));
  bind(d.share_memory, TESSERA_SYMBOL(cuIpcGetMemHandle));
  bind(d.open_shared_memory, TESSERA_SYMBOL(cuIpcOpenMemHandle));
  bind(d.close_shared_memory, TESSERA_SYMBOL(cuIpcCloseMemHandle));
  bind(d.share_event, TESSERA_SYMBOL(cuIpcGetEventHandle));
  bind(d.open_shared_event, TESSERA_SYMBOL(cuIpcOpenEventHandle));
  bind(d.context_current, TESSERA_SYMBOL(cuCtxGetCurrent));
  if (!loaded.missing) {
    const CUresult result = d.init(0);
    if (result != CUDA_SUCCESS) {
      const char* text = nullptr;
      d.error_string(result, &text);
      loaded.missing = std::string("the NVIDIA driver cannot start: ") + (text != nullptr ? text : "unknown error");
    }
  }
  return loaded;
}

const Loaded& loaded_driver() {
  static const Loaded loaded = load();
  return loaded;
}

}  // namespace

std::optional<std::string> driver_missing() { return loaded_driver().missing; }

const Driver& driver() {
  const Loaded& loaded = loaded_driver();
  if (loaded.missing) {
    throw Error(ErrorCode::unsupported, *loaded.missing);
  }
  return loaded.driver;
}

void check(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) {
    return;
  }
  const char* text = nullptr;
  loaded_driver().driver.error_string(result, &text);
  throw Error(ErrorCode::device, std::string(call) + ": " + (text != nullptr ? text : "unknown error") + " (error " +
                                     std::to_string(static_cast<int>(result)) + ")");
}

CUcontext primary_context(int device) {
  static std::mutex mutex;
  static std::map<int, CUcontext> contexts;
  const std::lock_guard lock(mutex);
  CUcontext& context = contexts[device];
  if (context == nullptr) {
    CUdevice handle = 0;
    check(driver().device_get(&handle, device), "cuDeviceGet");
    check(driver().primary_context_retain(&context, handle), "cuDevicePrimaryCtxRetain");
  }
  return context;
}

ContextScope::ContextScope(int device) {
  const CUcontext wanted = primary_context(device);
  CUcontext current = nullptr;
  check(driver().context_current(&current), "cuCtxGetCurrent");
  if (current != wanted) {
    check(driver().context_push(wanted), "cuCtxPushCurrent");
    pushed_ = true;
  }
}

ContextScope::~ContextScope() {
  if (pushed_) {
    CUcontext popped = nullptr;
    loaded_driver().driver.context_pop(&popped);
  }
}

}  // namespace tessera::internal
