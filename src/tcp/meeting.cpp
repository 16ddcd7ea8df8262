#include "tcp/meeting.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>

#include "core/fail.h"

namespace tessera::internal {

namespace {

using Clock = PendingTransfer::Clock;

constexpr std::uint32_t kMagic = 0x54455353;

// What a rank says first, and what rank 0 answers for each.
struct Hello {
  std::uint32_t magic = kMagic;
  std::int32_t rank = 0;
  std::int32_t ranks = 0;
  std::uint16_t port = 0;  // where it listens
  std::uint16_t unused = 0;
  std::uint32_t address = 0;  // in network order, as rank 0 sees it
};

[[noreturn]] void fail_system(const std::string& call) {
  throw Error(ErrorCode::peer, call + ": " + std::strerror(errno));
}

class Deadline {
 public:
  explicit Deadline(std::chrono::milliseconds timeout) : end_(Clock::now() + timeout) {}
  int left_ms() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end_ - Clock::now()).count();
    return static_cast<int>(std::max<std::int64_t>(left, 0));
  }
  bool over() const { return left_ms() == 0; }

 private:
  Clock::time_point end_;
};

in_addr address_of(const std::string& name) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(name.c_str(), nullptr, &hints, &found) != 0 || found == nullptr) {
    fail_argument("address", name, "the name or number of a machine with IPv4");
  }
  const in_addr address = reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr;
  ::freeaddrinfo(found);
  return address;
}

sockaddr_in endpoint(in_addr address, int port) {
  sockaddr_in end{};
  end.sin_family = AF_INET;
  end.sin_addr = address;
  end.sin_port = htons(static_cast<std::uint16_t>(port));
  return end;
}

Socket listen_at(in_addr address, int port) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  ::setsockopt(socket.handle(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const sockaddr_in end = endpoint(address, port);
  if (::bind(socket.handle(), reinterpret_cast<const sockaddr*>(&end), sizeof end) != 0 ||
      ::listen(socket.handle(), SOMAXCONN) != 0) {
    fail_system("listening at port " + std::to_string(port));
  }
  return socket;
}

std::uint16_t port_of(const Socket& socket) {
  sockaddr_in end{};
  socklen_t length = sizeof end;
  ::getsockname(socket.handle(), reinterpret_cast<sockaddr*>(&end), &length);
  return ntohs(end.sin_port);
}

void without_delay(const Socket& socket) {
  const int yes = 1;
  ::setsockopt(socket.handle(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

// Until the peer listens.
Socket connect_to(in_addr address, int port, const Deadline& deadline, const std::string& whom) {
  const sockaddr_in end = endpoint(address, port);
  while (!deadline.over()) {
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket.handle(), reinterpret_cast<const sockaddr*>(&end), sizeof end) == 0) {
      without_delay(socket);
      return socket;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw Error(ErrorCode::peer, whom + " did not listen at port " + std::to_string(port) + " in time");
}

Socket accept_from(const Socket& listener, const Deadline& deadline) {
  pollfd waiting{listener.handle(), POLLIN, 0};
  if (::poll(&waiting, 1, deadline.left_ms()) <= 0) {
    return {};
  }
  Socket socket(::accept4(listener.handle(), nullptr, nullptr, SOCK_CLOEXEC));
  without_delay(socket);
  return socket;
}

bool read_all(const Socket& socket, void* data, std::size_t bytes, const Deadline& deadline) {
  auto* next = static_cast<char*>(data);
  while (bytes > 0) {
    pollfd waiting{socket.handle(), POLLIN, 0};
    if (::poll(&waiting, 1, deadline.left_ms()) <= 0) {
      return false;
    }
    const auto got = ::recv(socket.handle(), next, bytes, 0);
    if (got <= 0) {
      return false;
    }
    next += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

void write_all(const Socket& socket, const void* data, std::size_t bytes) {
  if (::send(socket.handle(), data, bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) {
    fail_system("sending to another rank");
  }
}

int port_in_file(const std::string& file, const Deadline& deadline) {
  while (!deadline.over()) {
    std::ifstream in(file);
    int port = 0;
    if (in >> port) {
      return port;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw Error(ErrorCode::peer, "rank 0 did not write its port to " + file + " in time");
}

// Whole or not at all.
void write_port(const std::string& file, int port) {
  const std::string draft = file + ".part";
  std::ofstream out(draft);
  out << port << "\n";
  out.close();
  if (!out || std::rename(draft.c_str(), file.c_str()) != 0) {
    throw Error(ErrorCode::io, "file: " + file + " cannot be written");
  }
}

std::string ranks_text(const std::vector<Socket>& sockets) {
  std::string text;
  for (std::size_t rank = 1; rank < sockets.size(); ++rank) {
    if (sockets[rank].handle() < 0) {
      text += (text.empty() ? "rank " : ", ") + std::to_string(rank);
    }
  }
  return text;
}

void require_hello(const Hello& hello, const TcpOptions& options) {
  if (hello.magic != kMagic || hello.rank < 0 || hello.rank >= options.ranks || hello.ranks != options.ranks) {
    throw Error(ErrorCode::peer, "rank " + std::to_string(hello.rank) + " was started as one of " +
                                     std::to_string(hello.ranks) + " ranks, rank 0 as one of " +
                                     std::to_string(options.ranks));
  }
}

std::vector<Socket> welcome(const TcpOptions& options, in_addr address, const Deadline& deadline) {
  const Socket listener = options.listener >= 0 ? Socket(options.listener) : listen_at(address, options.port);
  if (!options.file.empty()) {
    write_port(options.file, port_of(listener));
  }
  std::vector<Socket> sockets(static_cast<std::size_t>(options.ranks));
  std::vector<Hello> all(static_cast<std::size_t>(options.ranks));
  for (int there = 1; there < options.ranks;) {
    Socket socket = accept_from(listener, deadline);
    if (socket.handle() < 0) {
      throw Error(ErrorCode::peer, ranks_text(sockets) + " did not come in time");
    }
    Hello hello;
    if (!read_all(socket, &hello, sizeof hello, deadline) || hello.magic != kMagic) {
      continue;  // somebody else's connection
    }
    require_hello(hello, options);
    sockaddr_in end{};
    socklen_t length = sizeof end;
    ::getpeername(socket.handle(), reinterpret_cast<sockaddr*>(&end), &length);
    hello.address = end.sin_addr.s_addr;
    const auto rank = static_cast<std::size_t>(hello.rank);
    if (rank == 0 || sockets[rank].handle() >= 0) {
      throw Error(ErrorCode::peer, "rank " + std::to_string(rank) + " came twice");
    }
    sockets[rank] = std::move(socket);
    all[rank] = hello;
    ++there;
  }
  for (std::size_t rank = 1; rank < sockets.size(); ++rank) {
    write_all(sockets[rank], all.data(), all.size() * sizeof(Hello));
  }
  if (!options.file.empty()) {
    std::remove(options.file.c_str());
  }
  return sockets;
}

// Connects to rank 0, then to the ranks below, and waits for those above.
std::vector<Socket> join(const TcpOptions& options, in_addr address, const Deadline& deadline) {
  const int port = options.file.empty() ? options.port : port_in_file(options.file, deadline);
  std::vector<Socket> sockets(static_cast<std::size_t>(options.ranks));
  sockets[0] = connect_to(address, port, deadline, "rank 0");
  sockaddr_in own{};
  socklen_t length = sizeof own;
  ::getsockname(sockets[0].handle(), reinterpret_cast<sockaddr*>(&own), &length);
  const Socket listener = listen_at(own.sin_addr, 0);
  Hello hello;
  hello.rank = options.rank;
  hello.ranks = options.ranks;
  hello.port = port_of(listener);
  write_all(sockets[0], &hello, sizeof hello);
  std::vector<Hello> all(static_cast<std::size_t>(options.ranks));
  if (!read_all(sockets[0], all.data(), all.size() * sizeof(Hello), deadline)) {
    throw Error(ErrorCode::peer, "rank 0 left or did not answer: not all ranks came in time");
  }
  for (int rank = 1; rank < options.rank; ++rank) {
    const Hello& other = all[static_cast<std::size_t>(rank)];
    Socket& socket = sockets[static_cast<std::size_t>(rank)];
    socket = connect_to({other.address}, other.port, deadline, "rank " + std::to_string(rank));
    write_all(socket, &hello, sizeof hello);
  }
  for (int there = options.rank + 1; there < options.ranks;) {
    Socket socket = accept_from(listener, deadline);
    if (socket.handle() < 0) {
      throw Error(ErrorCode::peer, ranks_text(sockets) + " did not come in time");
    }
    Hello other;
    if (read_all(socket, &other, sizeof other, deadline) && other.magic == kMagic && other.rank > options.rank &&
        other.rank < options.ranks) {
      sockets[static_cast<std::size_t>(other.rank)] = std::move(socket);
      ++there;
    }
  }
  return sockets;
}

}  // namespace

Socket::~Socket() {
  if (handle_ >= 0) {
    ::close(handle_);
  }
}

std::vector<Socket> meet(const TcpOptions& options) {
  const Deadline deadline(options.communicator.timeout);
  const in_addr address = address_of(options.address);
  return options.rank == 0 ? welcome(options, address, deadline) : join(options, address, deadline);
}

}  // namespace tessera::internal
