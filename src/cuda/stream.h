// Events, copies between devices and memory that ranks need. Without CUDA every function throws Error(unsupported).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tessera::internal {

// A point in the work of a stream.
class DeviceEvent {
 public:
  using Clock = std::chrono::steady_clock;

  explicit DeviceEvent(int device);
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;
  ~DeviceEvent();

  int device() const { return device_; }
  // After what `stream`, one of this device, already holds.
  void record(void* stream);
  // What is put into `stream`, of any device, afterwards waits for the event.
  void hold(int stream_device, void* stream) const;
  bool reached() const;
  void synchronize() const;
  // The same for destructors: whether it was reached. Where it was not, the device is lost, and uses no memory any more.
  bool settle() const noexcept;
  // When it was reached, to about 20 microseconds; afterwards alone.
  Clock::time_point time() const;

 private:
  int device_;
  void* handle_ = nullptr;
};

// Makes a device current for its lifetime, for libraries that ask.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();
};

// A stream for copies, which do not wait for the kernels of other streams.
class CopyStream {
 public:
  explicit CopyStream(int device);
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;
  ~CopyStream();

  int device() const { return device_; }
  void* handle() const { return handle_; }
  // Between memory of any two devices, by the copy engines.
  void copy(void* target, int target_device, const void* source, int source_device, std::size_t bytes);
  // Between this device and host memory.
  void copy_to_host(void* host, const void* source, std::size_t bytes);
  void copy_from_host(void* target, const void* host, std::size_t bytes);

 private:
  int device_;
  void* handle_ = nullptr;
};

// Lets `device` read the memory of `peer` directly where the hardware can; copies go through the host elsewhere.
void open_path(int device, int peer);

std::shared_ptr<std::byte> allocate_on_device(int device, std::int64_t bytes);
// Host memory that the copy engines reach without a copy in between.
std::shared_ptr<std::byte> allocate_pinned(int device, std::int64_t bytes);
void synchronize_stream(int device, void* stream);
// The same after a failure, of which this is no news: whether the device went along.
bool settle_stream(int device, void* stream) noexcept;

}  // namespace tessera::internal
