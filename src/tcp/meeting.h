// How ranks find each other: a socket between each two of them.
#pragma once

#include <utility>
#include <vector>

#include "tessera/tcp.h"

namespace tessera::internal {

// Closes itself.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int handle) : handle_(handle) {}
  Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Socket();
  int handle() const { return handle_; }

 private:
  int handle_ = -1;
};

// Element r is connected to rank r; the own one is closed. Blocks until all are there, or throws Error(peer) that names those
// who are not when the timeout is over.
std::vector<Socket> meet(const TcpOptions& options);

}  // namespace tessera::internal
