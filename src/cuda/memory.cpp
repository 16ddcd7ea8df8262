#include "cuda/memory.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"

namespace tessera::internal {

namespace {

CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
CUstream stream_of(void* handle) { return static_cast<CUstream>(handle); }
CUevent event_of(void* handle) { return static_cast<CUevent>(handle); }

}  // namespace

DeviceMemory::DeviceMemory(int device, std::size_t bytes) : device_(device), bytes_(bytes) {
  cuda_device(device);
  if (bytes == 0) {
    return;
  }
  const ContextScope context(device);
  CUdeviceptr memory = 0;
  check(driver().memory_allocate(&memory, bytes), "cuMemAlloc");
  data_ = reinterpret_cast<void*>(memory);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) {
    const ContextScope context(device_);
    driver().memory_free(address(data_));
  }
}

void DeviceMemory::copy_from(const void* host, std::size_t bytes) {
  if (bytes > 0) {
    const ContextScope context(device_);
    check(driver().copy_to_device(address(data_), host, bytes), "cuMemcpyHtoD");
    check(driver().context_synchronize(), "cuCtxSynchronize");  // pageable memory may still be on its way
  }
}

void DeviceMemory::copy_to(void* host, std::size_t bytes) const {
  if (bytes > 0) {
    const ContextScope context(device_);
    check(driver().copy_to_host(host, address(data_), bytes), "cuMemcpyDtoH");
  }
}

void DeviceMemory::fill(std::uint8_t byte) {
  if (bytes_ > 0) {
    const ContextScope context(device_);
    check(driver().memory_set(address(data_), byte, bytes_), "cuMemsetD8");
    check(driver().context_synchronize(), "cuCtxSynchronize");
  }
}

DeviceStream::DeviceStream(int device) : device_(device) {
  cuda_device(device);
  const ContextScope context(device);
  CUstream stream = nullptr;
  CUevent start = nullptr;
  CUevent stop = nullptr;
  check(driver().stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  check(driver().event_create(&start, CU_EVENT_DEFAULT), "cuEventCreate");
  check(driver().event_create(&stop, CU_EVENT_DEFAULT), "cuEventCreate");
  handle_ = stream;
  start_ = start;
  stop_ = stop;
}

DeviceStream::~DeviceStream() {
  const ContextScope context(device_);
  if (graph_ != nullptr) {
    driver().graph_exec_destroy(static_cast<CUgraphExec>(graph_));
  }
  driver().event_destroy(event_of(start_));
  driver().event_destroy(event_of(stop_));
  driver().stream_destroy(stream_of(handle_));
}

void DeviceStream::synchronize() const {
  const ContextScope context(device_);
  check(driver().stream_synchronize(stream_of(handle_)), "cuStreamSynchronize");
}

double DeviceStream::seconds(const std::function<void()>& work) const {
  const ContextScope context(device_);
  check(driver().event_record(event_of(start_), stream_of(handle_)), "cuEventRecord");
  work();
  check(driver().event_record(event_of(stop_), stream_of(handle_)), "cuEventRecord");
  check(driver().event_synchronize(event_of(stop_)), "cuEventSynchronize");
  float milliseconds = 0;
  check(driver().event_elapsed(&milliseconds, event_of(start_), event_of(stop_)), "cuEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

void DeviceStream::capture(const std::function<void()>& work) {
  const ContextScope context(device_);
  check(driver().capture_begin(stream_of(handle_), CU_STREAM_CAPTURE_MODE_GLOBAL), "cuStreamBeginCapture");
  CUgraph graph = nullptr;
  try {
    work();
  } catch (...) {
    driver().capture_end(stream_of(handle_), &graph);
    throw;
  }
  check(driver().capture_end(stream_of(handle_), &graph), "cuStreamEndCapture");
  CUgraphExec executable = nullptr;
  const CUresult result = driver().graph_instantiate(&executable, graph, 0);
  driver().graph_destroy(graph);
  check(result, "cuGraphInstantiate");
  if (graph_ != nullptr) {
    driver().graph_exec_destroy(static_cast<CUgraphExec>(graph_));
  }
  graph_ = executable;
}

void DeviceStream::replay() const {
  const ContextScope context(device_);
  check(driver().graph_launch(static_cast<CUgraphExec>(graph_), stream_of(handle_)), "cuGraphLaunch");
}

std::int64_t device_free_bytes(int device) {
  cuda_device(device);
  const ContextScope context(device);
  std::size_t free = 0;
  std::size_t total = 0;
  check(driver().memory_info(&free, &total), "cuMemGetInfo");
  return static_cast<std::int64_t>(free);
}

double measure_matrix_rate(int device) {
  const CudaDeviceInfo& info = cuda_device(device);
  if (info.capability_major != 9) {
    throw Error(ErrorCode::unsupported,
                "the matrix rate is measured on devices of compute capability 9.0, not on " + info.name);
  }
  // 2 warpgroups, each 4 products of 64 x 256 x 16 a step.
  constexpr int kSteps = 8000;
  constexpr double kFlopsOfStep = 2.0 * 4 * 2 * 64 * 256 * 16;
  constexpr int kThreads = 256;
  constexpr int kSharedBytes = 49 * 1024;
  const Kernel& kernel = Kernel::load(device, "matrix_rate");
  const DeviceStream stream(device);
  const ContextScope context(device);
  std::array<double, 9> seconds{};
  for (double& of_run : seconds) {
    of_run =
        stream.seconds([&] { kernel.launch({info.multiprocessors, kThreads, kSharedBytes}, kSteps, stream.handle()); });
  }
  std::ranges::nth_element(seconds, seconds.begin() + seconds.size() / 2);
  return kFlopsOfStep * kSteps * info.multiprocessors / seconds[seconds.size() / 2];
}

double measure_copy_rate(int device) {
  constexpr std::size_t kBytes = std::size_t{1} << 29;
  DeviceMemory from(device, kBytes);
  const DeviceMemory to(device, kBytes);
  from.fill(0x3F);
  const DeviceStream stream(device);
  const ContextScope context(device);
  std::array<double, 9> seconds{};
  for (double& of_run : seconds) {
    of_run = stream.seconds([&] {
      check(driver().copy_on_device_async(address(to.data()), address(from.data()), kBytes, stream_of(stream.handle())),
            "cuMemcpyDtoDAsync");
    });
  }
  std::ranges::nth_element(seconds, seconds.begin() + seconds.size() / 2);
  return 2.0 * kBytes / seconds[seconds.size() / 2];
}

}  // namespace tessera::internal
