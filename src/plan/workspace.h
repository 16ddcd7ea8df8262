// One aligned allocation, laid out before it exists: add() the arrays, then ask for bytes() and cut pointers from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/fail.h"
#include "plan/impl.h"

namespace tessera::internal {

template <class T>
struct WorkspaceSlot {
  std::int64_t offset_bytes = 0;
  T* in(std::span<std::byte> workspace) const { return reinterpret_cast<T*>(workspace.data() + offset_bytes); }
};

class WorkspaceLayout {
 public:
  template <class T>
  WorkspaceSlot<T> add(std::int64_t count) {
    const WorkspaceSlot<T> slot{bytes_};
    const std::int64_t size = checked_mul(count, static_cast<std::int64_t>(sizeof(T)), "workspace bytes");
    bytes_ = checked_add(bytes_, round_up(size, kWorkspaceAlignment), "workspace bytes");
    return slot;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::int64_t bytes_ = 0;
};

}  // namespace tessera::internal
