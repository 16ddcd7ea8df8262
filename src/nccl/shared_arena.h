// Device memory of one rank that the processes of other ranks have open.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/shared_memory.h"

namespace tessera::internal {

// What is given back is kept for the next one who asks, and no memory is freed before the arena is: others may have it open.
class SharedArena : public std::enable_shared_from_this<SharedArena> {
 public:
  explicit SharedArena(int device) : device_(device) {}

  std::shared_ptr<std::byte> allocate(std::int64_t bytes);

  // Where some memory is, for another process.
  struct Place {
    SharedKey key{};
    std::int64_t offset = 0;
  };
  // nullopt for memory of another kind.
  std::optional<Place> place(const std::byte* memory, std::size_t bytes) const;

 private:
  struct Piece {
    std::shared_ptr<std::byte> memory;
    std::int64_t bytes = 0;
    SharedKey key{};
    bool used = false;
  };
  void give_back(const std::byte* memory);

  int device_;
  mutable std::mutex mutex_;
  std::vector<Piece> pieces_;
};

}  // namespace tessera::internal
