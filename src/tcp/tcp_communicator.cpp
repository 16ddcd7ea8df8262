// A group whose ranks met by TCP, as a Communicator.
#include <cstdlib>

#include "core/fail.h"
#include "tcp/meeting.h"
#include "tcp/progress.h"
#include "tessera/tcp.h"

namespace tessera {

namespace {

int number_of(const char* name, int least, int most) {
  const char* text = std::getenv(name);
  const std::string accepted = std::to_string(least) + " to " + std::to_string(most);
  if (text == nullptr) {
    internal::fail_argument(name, "not in the environment", accepted);
  }
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || number < least || number > most) {
    internal::fail_argument(name, text, accepted);
  }
  return static_cast<int>(number);
}

constexpr int kMostRanks = 4096;
constexpr int kMostPort = 65535;

void require(const TcpOptions& options) {
  if (options.ranks < 1 || options.ranks > kMostRanks) {
    internal::fail_argument("ranks", std::int64_t{options.ranks}, "1 to " + std::to_string(kMostRanks));
  }
  if (options.rank < 0 || options.rank >= options.ranks) {
    internal::fail_argument("rank", std::int64_t{options.rank}, "0 to " + std::to_string(options.ranks - 1));
  }
  const bool listens = options.listener >= 0;
  if (listens && options.rank != 0) {
    internal::fail_argument("listener", std::int64_t{options.listener}, "-1 on every rank but 0");
  }
  if (!listens && (options.file.empty() ? options.port < 1 || options.port > kMostPort : options.port != 0)) {
    internal::fail_argument("port", std::int64_t{options.port}, "1 to 65535, or 0 beside a file");
  }
  if (options.communicator.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.communicator.timeout.count()}, "1 or more");
  }
}

}  // namespace

TcpOptions tcp_options_from_environment() {
  TcpOptions options;
  options.ranks = number_of("WORLD_SIZE", 1, kMostRanks);
  options.rank = number_of("RANK", 0, options.ranks - 1);
  options.port = number_of("MASTER_PORT", 1, kMostPort - 1) + 1;
  if (const char* address = std::getenv("MASTER_ADDR")) {
    options.address = address;
  }
  return options;
}

std::unique_ptr<Communicator> tcp_communicator(const TcpOptions& options) {
  require(options);
  return std::make_unique<internal::ProgressCommunicator>(
      "tcp",
      std::make_unique<internal::TcpProgress>(internal::meet(options), options.rank, options.communicator.timeout));
}

}  // namespace tessera
