#include "workspace_pool.h"

#include <algorithm>
#include <utility>

namespace tessera::python {

WorkspacePool::Buffer WorkspacePool::take(std::size_t bytes) {
  if (bytes == 0) {
    return {};
  }
  Buffer buffer;
  {
    const std::scoped_lock lock(mutex_);
    const auto fits = [bytes](const Buffer& idle) { return idle.bytes >= bytes; };
    const auto found = std::find_if(idle_.begin(), idle_.end(), fits);
    if (found != idle_.end()) {
      buffer = std::move(*found);
      idle_.erase(found);
      return buffer;
    }
    // None is large enough: the largest makes room for a larger one.
    if (!idle_.empty()) {
      idle_.pop_back();
    }
  }
  buffer.memory.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kWorkspaceAlignment})));
  buffer.bytes = bytes;
  return buffer;
}

void WorkspacePool::give_back(Buffer buffer) {
  if (buffer.memory == nullptr) {
    return;
  }
  const std::scoped_lock lock(mutex_);
  const auto larger = [&buffer](const Buffer& idle) { return idle.bytes > buffer.bytes; };
  const auto place = std::find_if(idle_.begin(), idle_.end(), larger);
  idle_.insert(place, std::move(buffer));
}

void WorkspacePool::clear() {
  const std::scoped_lock lock(mutex_);
  idle_.clear();
}

std::size_t WorkspacePool::idle_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::size_t bytes = 0;
  for (const Buffer& buffer : idle_) {
    bytes += buffer.bytes;
  }
  return bytes;
}

}  // namespace tessera::python
