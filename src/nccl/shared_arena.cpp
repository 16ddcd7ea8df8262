#include "nccl/shared_arena.h"

#include <algorithm>

namespace tessera::internal {

std::shared_ptr<std::byte> SharedArena::allocate(std::int64_t bytes) {
  if (bytes == 0) {
    return nullptr;
  }
  const std::lock_guard lock(mutex_);
  Piece* best = nullptr;
  for (Piece& piece : pieces_) {
    const bool fits = !piece.used && piece.bytes >= bytes && piece.bytes / 2 <= bytes;
    if (fits && (best == nullptr || piece.bytes < best->bytes)) {
      best = &piece;
    }
  }
  if (best == nullptr) {
    Piece piece;
    piece.memory = allocate_shared(device_, bytes, piece.key);
    piece.bytes = bytes;
    best = &pieces_.emplace_back(std::move(piece));
  }
  best->used = true;
  return {best->memory.get(), [arena = shared_from_this()](const std::byte* memory) { arena->give_back(memory); }};
}

std::optional<SharedArena::Place> SharedArena::place(const std::byte* memory, std::size_t bytes) const {
  const std::lock_guard lock(mutex_);
  for (const Piece& piece : pieces_) {
    const std::byte* begin = piece.memory.get();
    if (memory >= begin && memory + bytes <= begin + piece.bytes) {
      return Place{piece.key, memory - begin};
    }
  }
  return std::nullopt;
}

void SharedArena::give_back(const std::byte* memory) {
  const std::lock_guard lock(mutex_);
  const auto own =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& piece) { return piece.memory.get() == memory; });
  own->used = false;
}

}  // namespace tessera::internal
