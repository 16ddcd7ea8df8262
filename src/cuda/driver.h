// The CUDA driver, loaded when it is first needed: nothing links against it, so one binary runs with and without a driver.
#pragma once

#include <cuda.h>

#include <optional>
#include <string>

namespace tessera::internal {

// The functions of the driver that the library calls.
struct Driver {
  decltype(&::cuInit) init;
  decltype(&::cuDriverGetVersion) driver_version;
  decltype(&::cuGetErrorString) error_string;
  decltype(&::cuDeviceGetCount) device_count;
  decltype(&::cuDeviceGet) device_get;
  decltype(&::cuDeviceGetName) device_name;
  decltype(&::cuDeviceGetAttribute) device_attribute;
  decltype(&::cuDeviceTotalMem) device_total_memory;
  decltype(&::cuDevicePrimaryCtxRetain) primary_context_retain;
  decltype(&::cuCtxPushCurrent) context_push;
  decltype(&::cuCtxPopCurrent) context_pop;
  decltype(&::cuModuleLoadData) module_load;
  decltype(&::cuModuleGetFunction) module_function;
  decltype(&::cuFuncGetAttribute) function_attribute;
  decltype(&::cuFuncSetAttribute) function_set_attribute;
  decltype(&::cuLaunchKernelEx) launch;
  decltype(&::cuTensorMapEncodeTiled) encode_tensor_map;
  decltype(&::cuPointerGetAttributes) pointer_attributes;
  decltype(&::cuMemAlloc) memory_allocate;
  decltype(&::cuMemFree) memory_free;
  decltype(&::cuMemAllocFromPoolAsync) memory_allocate_from_pool;
  decltype(&::cuMemFreeAsync) memory_free_async;
  decltype(&::cuMemPoolCreate) pool_create;
  decltype(&::cuMemPoolSetAttribute) pool_set_attribute;
  decltype(&::cuMemGetInfo) memory_info;
  decltype(&::cuMemAllocHost) host_allocate;
  decltype(&::cuMemFreeHost) host_free;
  decltype(&::cuMemcpyAsync) copy_async;
  decltype(&::cuMemcpyPeerAsync) copy_peer_async;
  decltype(&::cuDeviceCanAccessPeer) can_access_peer;
  decltype(&::cuCtxEnablePeerAccess) enable_peer_access;
  decltype(&::cuMemcpyHtoD) copy_to_device;
  decltype(&::cuMemcpyDtoH) copy_to_host;
  decltype(&::cuMemcpyDtoDAsync) copy_on_device_async;
  decltype(&::cuMemsetD8) memory_set;
  decltype(&::cuMemsetD8Async) memory_set_async;
  decltype(&::cuCtxSynchronize) context_synchronize;
  decltype(&::cuStreamCreate) stream_create;
  decltype(&::cuStreamCreateWithPriority) stream_create_with_priority;
  decltype(&::cuCtxGetStreamPriorityRange) stream_priorities;
  decltype(&::cuStreamDestroy) stream_destroy;
  decltype(&::cuStreamWaitEvent) stream_wait_event;
  decltype(&::cuStreamSynchronize) stream_synchronize;
  decltype(&::cuStreamBeginCapture) capture_begin;
  decltype(&::cuStreamEndCapture) capture_end;
  decltype(&::cuGraphInstantiate) graph_instantiate;
  decltype(&::cuGraphDestroy) graph_destroy;
  decltype(&::cuGraphExecDestroy) graph_exec_destroy;
  decltype(&::cuGraphLaunch) graph_launch;
  decltype(&::cuEventCreate) event_create;
  decltype(&::cuEventDestroy) event_destroy;
  decltype(&::cuEventRecord) event_record;
  decltype(&::cuEventQuery) event_query;
  decltype(&::cuEventSynchronize) event_synchronize;
  decltype(&::cuEventElapsedTime) event_elapsed;
  decltype(&::cuIpcGetMemHandle) share_memory;
  decltype(&::cuIpcOpenMemHandle) open_shared_memory;
  decltype(&::cuIpcCloseMemHandle) close_shared_memory;
  decltype(&::cuIpcGetEventHandle) share_event;
  decltype(&::cuIpcOpenEventHandle) open_shared_event;
  decltype(&::cuCtxGetCurrent) context_current;
};

// Why there is no driver; nullopt when there is.
std::optional<std::string> driver_missing();
// Throws Error(unsupported) with that reason.
const Driver& driver();

// Throws Error(device) that names the call and the driver's message unless `result` is success.
void check(CUresult result, const char* call);

// Of a device; kept for the life of the program, as every CUDA library does.
CUcontext primary_context(int device);

// Makes the primary context of a device current for its lifetime.
class ContextScope {
 public:
  explicit ContextScope(int device);
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;
  ~ContextScope();

 private:
  bool pushed_ = false;  // it was not current before
};

}  // namespace tessera::internal
