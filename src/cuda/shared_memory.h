// Device memory and events that other processes of the machine reach (CUDA IPC). Without CUDA every function throws
// Error(unsupported).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tessera::internal {

// What is told to another process.
using SharedKey = std::array<std::byte, 64>;

// Memory that `key` makes known. The whole of an allocation: small ones would share a page with others.
std::shared_ptr<std::byte> allocate_shared(int device, std::int64_t bytes, SharedKey& key);

// Another process's memory, for copies by `device`. That process has to keep it for as long.
class OpenedMemory {
 public:
  OpenedMemory(int device, const SharedKey& key);
  OpenedMemory(const OpenedMemory&) = delete;
  OpenedMemory& operator=(const OpenedMemory&) = delete;
  ~OpenedMemory();
  std::byte* data() const { return data_; }

 private:
  int device_;
  std::byte* data_ = nullptr;
};

// An event that one process records and others ask about.
class SharedEvent {
 public:
  explicit SharedEvent(int device);
  SharedEvent(int device, const SharedKey& key);
  SharedEvent(const SharedEvent&) = delete;
  SharedEvent& operator=(const SharedEvent&) = delete;
  ~SharedEvent();
  SharedKey key() const;
  void record(void* stream);
  bool reached() const;

 private:
  int device_;
  void* handle_ = nullptr;
};

}  // namespace tessera::internal
