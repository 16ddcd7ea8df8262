// A group whose ranks met by TCP, as a Communicator.
#include <cstdlib>

#include "core/fail.h"
#include "tcp/meeting.h"
#include "tcp/progress.h"
#include "tessera/tcp.h"

namespace tessera {

namespace {

class TcpTransfer final : public PendingTransfer {
 public:
  TcpTransfer(internal::TcpProgress& progress, std::shared_ptr<internal::TcpOperation> operation)
      : progress_(progress), operation_(std::move(operation)) {}
  ~TcpTransfer() override {
    if (!done_) {
      progress_.cancel(*operation_);
    }
  }
  void wait(void* /*stream*/) override {
    if (!done_) {
      progress_.wait(*operation_);
      done_ = true;
    }
  }
  Clock::time_point finished_at() const override { return operation_->finished; }

 private:
  internal::TcpProgress& progress_;
  std::shared_ptr<internal::TcpOperation> operation_;
  bool done_ = false;
};

class TcpCommunicator final : public Communicator {
 public:
  explicit TcpCommunicator(const TcpOptions& options)
      : rank_(options.rank), progress_(internal::meet(options), options.rank, options.communicator.timeout) {}

  int rank() const override { return rank_; }
  int size() const override { return progress_.size(); }
  std::string name() const override { return "tcp"; }
  std::optional<std::string> failure() const override { return progress_.failure(); }

 protected:
  void spread(const std::string& failure) noexcept override { progress_.spread(failure); }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* /*stream*/) override {
    // One Operation serves both directions.
    return start(true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size());
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* /*stream*/) override {
    return start(false, from, channel, bytes.data(), bytes.size());
  }

 private:
  std::unique_ptr<PendingTransfer> start(bool sends, int peer, int channel, std::byte* data, std::size_t bytes) {
    auto operation = std::make_shared<internal::TcpOperation>();
    operation->sends = sends;
    operation->peer = peer;
    operation->channel = channel;
    operation->data = data;
    operation->bytes = bytes;
    progress_.add(operation);
    return std::make_unique<TcpTransfer>(progress_, std::move(operation));
  }

  int rank_;
  mutable internal::TcpProgress progress_;
};

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
  return std::make_unique<TcpCommunicator>(options);
}

}  // namespace tessera
