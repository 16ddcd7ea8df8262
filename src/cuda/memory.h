// Device memory, copies, streams and timing for plans, the command line, the tests and the benchmarks. Running a plan
// uses none of it. Every function throws Error(unsupported) in a build or on a machine without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace tessera::internal {

// Memory of one device. Copies are complete when they return.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int device, std::size_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  void copy_from(const void* host, std::size_t bytes);
  void copy_to(void* host, std::size_t bytes) const;
  void fill(std::uint8_t byte);

 private:
  int device_ = 0;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// A stream of its own on one device, for work that is timed or captured.
class DeviceStream {
 public:
  explicit DeviceStream(int device);
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;
  ~DeviceStream();

  void* handle() const { return handle_; }  // a cudaStream_t
  // Waits; throws Error with the cause when a kernel failed.
  void synchronize() const;
  // Seconds on the device between an event before and an event after `work`, which enqueues on this stream.
  double seconds(const std::function<void()>& work) const;
  // Records what `work` enqueues on this stream into a graph, without running it; `replay` runs it.
  void capture(const std::function<void()>& work);
  void replay() const;

 private:
  int device_ = 0;
  void* handle_ = nullptr;
  void* graph_ = nullptr;
  void* start_ = nullptr;
  void* stop_ = nullptr;
};

// Bytes that are free on the device.
std::int64_t device_free_bytes(int device);
// FLOP/s of a matrix product on the tensor cores with random bfloat16 inputs, kept in shared memory: what the kernels of this
// library could at most reach on the device as it is now. Takes about 50 ms.
double measure_matrix_rate(int device);
// Bytes a second, read and written, of a copy from device memory to device memory that no cache holds. Takes about 20 ms and
// 1 GiB for that time.
double measure_copy_rate(int device);

}  // namespace tessera::internal
