// Workspaces that calls leave to the calls after them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <vector>

#include "tessera/plan.h"

namespace tessera::python {

// Keeps as many buffers as there were calls at one time, each as large as the largest call that used it.
class WorkspacePool {
 private:
  struct AlignedDelete {
    void operator()(std::byte* pointer) const { ::operator delete(pointer, std::align_val_t{kWorkspaceAlignment}); }
  };
  struct Buffer {
    std::unique_ptr<std::byte, AlignedDelete> memory;
    std::size_t bytes = 0;
  };

 public:
  // A buffer for the time of a call; goes back to the pool.
  class Lease {
   public:
    Lease(WorkspacePool& pool, std::size_t bytes) : pool_(pool), buffer_(pool.take(bytes)), bytes_(bytes) {}
    ~Lease() { pool_.give_back(std::move(buffer_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    std::span<std::byte> bytes() const { return {buffer_.memory.get(), bytes_}; }

   private:
    WorkspacePool& pool_;
    Buffer buffer_;
    std::size_t bytes_;
  };

  Lease lease(std::int64_t bytes) { return {*this, static_cast<std::size_t>(bytes)}; }
  // Frees what no call is using.
  void clear();
  // Bytes that no call is using.
  std::size_t idle_bytes() const;

 private:
  Buffer take(std::size_t bytes);
  void give_back(Buffer buffer);

  mutable std::mutex mutex_;
  std::vector<Buffer> idle_;  // the largest comes last
};

}  // namespace tessera::python
