// Messages from the memory of one process to that of another on the copy engines, which leave all multiprocessors to kernels.
// The receiver tells where its memory is once that may be written (an offer); the sender copies, and tells which event says
// that it is done (a token). Both go through the control group, which knows who is missing. No device ever waits for another
// process, so that a lost one leaves no stream behind that cannot end: hosts do, when they first wait for a message. By then
// they have given the device the work that is beside it.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/stream.h"
#include "nccl/control_transfer.h"
#include "nccl/message_queue.h"
#include "nccl/shared_arena.h"
#include "tessera/nccl.h"

namespace tessera {

namespace {

using Clock = PendingTransfer::Clock;
using internal::DeviceEvent;
using internal::SharedArena;
using internal::SharedEvent;
using internal::SharedKey;

// Channels of the control group, on which messages without bytes have those of their own.
constexpr int kOffers = Communicator::kHostChannel - 2;
constexpr int kTokens = Communicator::kHostChannel - 1;

struct Offer {
  SharedArena::Place place;
  std::uint64_t bytes = 0;
  std::uint64_t received = 0;  // messages from the sender whose tokens the receiver needs no more
};

struct Token {
  SharedKey event{};
  std::uint64_t slot = 0;
};

struct CopyOperation : internal::DeviceMessage {
  Offer offer;
  Token token;
  Transfer offer_transfer;
  Transfer token_transfer;
  std::unique_ptr<DeviceEvent> copied;  // of a sender
  bool flushed = false;
  bool started = false;
  Clock::time_point arrived;
};

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

class CopyEngine {
 public:
  CopyEngine(std::unique_ptr<Communicator> control, const NcclOptions& options)
      : control_(std::move(control)), options_(options), arena_(std::make_shared<SharedArena>(options.device.index)) {}
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;
  // Nobody frees memory that another one has open.
  ~CopyEngine() {
    opened_.clear();
    others_have_closed();
  }

  Communicator& control() { return *control_; }
  SharedArena& arena() { return *arena_; }

  std::shared_ptr<CopyOperation> add(internal::DeviceMessage message, void* stream) {
    return posted_.add(std::move(message), device(), stream);
  }

  void flush() {
    if (!posted_.empty()) {
      for (const auto& operation : groups_.emplace_back(posted_.take())) {
        operation->flushed = true;
      }
    }
  }

  void wait(CopyOperation& operation, void* stream) {
    if (!operation.flushed) {  // else what was posted since belongs to a later group, at the other end too
      flush();
    }
    while (!operation.started) {
      const std::vector<std::shared_ptr<CopyOperation>> group = std::move(groups_.front());
      groups_.pop_front();
      start(group);
    }
    operation.offer_transfer.wait();
    operation.token_transfer.wait();
    if (operation.sends) {
      operation.copied->hold(device(), stream);
      return;
    }
    wait_until(operation, [&, &event = event_of(operation)] { return event.reached(); });
    operation.arrived = Clock::now();
    ++counts_[operation.peer].received;
  }

  // Its memory goes away.
  static void drop(CopyOperation& operation) noexcept {
    operation.dropped = true;
    if (operation.copied) {
      operation.copied->settle();
    }
  }

 private:
  // Since a peer may use an event that it has been told of.
  static constexpr std::uint64_t kSlots = 64;

  struct Counts {
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
  };

  int device() const { return options_.device.index; }

  void start(const std::vector<std::shared_ptr<CopyOperation>>& group) {
    for (const auto& operation : group) {
      operation->started = true;
      if (operation->sends) {
        operation->offer_transfer = control_->receive(operation->peer, kOffers, bytes_of(operation->offer));
      }
    }
    for (const auto& operation : group) {
      if (!operation->sends) {
        make_offer(*operation);
      }
    }
    for (const auto& operation : group) {
      if (operation->sends) {
        copy(*operation);
      }
    }
  }

  // False where one of them is lost.
  bool others_have_closed() {
    try {
      control_->gather(std::array<std::byte, 1>{});
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  template <class Reached>
  void wait_until(const CopyOperation& operation, const Reached& reached) {
    const auto deadline = Clock::now() + options_.communicator.timeout;
    while (!reached()) {
      if (const auto failure = control_->failure()) {
        throw Error(ErrorCode::peer, *failure);
      }
      if (Clock::now() > deadline) {
        const double seconds = std::chrono::duration<double>(options_.communicator.timeout).count();
        const Error error(ErrorCode::peer, "rank " + std::to_string(operation.peer) + " was silent for " +
                                               internal::to_text(seconds) + " s, as rank " +
                                               std::to_string(control_->rank()) + " found");
        control_->abort(error);
        throw Error(error);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(10));
    }
  }

  void make_offer(CopyOperation& operation) {
    const auto place = arena_->place(operation.data, operation.bytes);
    if (!place) {
      throw Error(ErrorCode::invalid_argument,
                  "receive: memory of another kind; accepted for copies between processes: what allocate() returned");
    }
    wait_until(operation, [&] { return operation.ready->reached(); });
    operation.offer = {*place, operation.bytes, counts_[operation.peer].received};
    operation.token_transfer = control_->receive(operation.peer, kTokens, bytes_of(operation.token));
    operation.offer_transfer = control_->send(operation.peer, kOffers, bytes_of(operation.offer));
  }

  void copy(CopyOperation& operation) {
    operation.offer_transfer.wait();
    const Offer& offer = operation.offer;
    if (offer.bytes != operation.bytes) {
      const Error error(ErrorCode::peer, "rank " + std::to_string(control_->rank()) + " sends " +
                                             std::to_string(operation.bytes) + " bytes, and rank " +
                                             std::to_string(operation.peer) + " expects " +
                                             std::to_string(offer.bytes));
      control_->abort(error);
      throw Error(error);
    }
    auto& memory = opened_[offer.place.key];
    if (!memory) {
      memory = std::make_unique<internal::OpenedMemory>(device(), offer.place.key);
    }
    auto& stream = streams_[{operation.peer, operation.channel}];
    if (!stream) {
      stream = std::make_unique<internal::CopyStream>(device());
    }
    Counts& counts = counts_[operation.peer];
    if (counts.sent - offer.received >= kSlots) {
      throw Error(ErrorCode::peer, "more than " + std::to_string(kSlots) + " messages to rank " +
                                       std::to_string(operation.peer) + " are under way");
    }
    operation.token.slot = counts.sent++ % kSlots;
    auto& event = events_[{operation.peer, operation.token.slot}];
    if (!event) {
      event = std::make_unique<SharedEvent>(device());
    }
    operation.copied = std::make_unique<DeviceEvent>(device());
    operation.ready->hold(device(), stream->handle());
    stream->copy(memory->data() + offer.place.offset, device(), operation.data, device(), operation.bytes);
    event->record(stream->handle());
    operation.copied->record(stream->handle());
    operation.token.event = event->key();
    operation.token_transfer = control_->send(operation.peer, kTokens, bytes_of(operation.token));
  }

  SharedEvent& event_of(const CopyOperation& operation) {
    auto& event = opened_events_[{operation.peer, operation.token.slot}];
    if (!event) {
      event = std::make_unique<SharedEvent>(device(), operation.token.event);
    }
    return *event;
  }

  std::unique_ptr<Communicator> control_;
  NcclOptions options_;
  std::shared_ptr<SharedArena> arena_;
  std::map<SharedKey, std::unique_ptr<internal::OpenedMemory>> opened_;
  std::map<std::pair<int, int>, std::unique_ptr<internal::CopyStream>> streams_;
  std::map<std::pair<int, std::uint64_t>, std::unique_ptr<SharedEvent>> events_;         // of this rank's copies
  std::map<std::pair<int, std::uint64_t>, std::unique_ptr<SharedEvent>> opened_events_;  // of others' copies to it
  std::map<int, Counts> counts_;
  internal::MessageQueue<CopyOperation> posted_;
  std::deque<std::vector<std::shared_ptr<CopyOperation>>> groups_;  // flushed and not started
};

class CopyTransfer final : public PendingTransfer {
 public:
  CopyTransfer(CopyEngine& engine, std::shared_ptr<CopyOperation> operation)
      : engine_(engine), operation_(std::move(operation)) {}
  ~CopyTransfer() override { CopyEngine::drop(*operation_); }
  void wait(void* stream) override {
    if (!awaited_) {
      engine_.wait(*operation_, stream);
      awaited_ = true;
    }
  }
  Clock::time_point finished_at() const override {
    return operation_->sends ? operation_->copied->time() : operation_->arrived;
  }

 private:
  CopyEngine& engine_;
  std::shared_ptr<CopyOperation> operation_;
  bool awaited_ = false;
};

class CopyCommunicator final : public Communicator {
 public:
  CopyCommunicator(std::unique_ptr<Communicator> control, const NcclOptions& options)
      : device_(options.device), engine_(std::make_unique<CopyEngine>(std::move(control), options)) {}

  int rank() const override { return engine_->control().rank(); }
  int size() const override { return engine_->control().size(); }
  std::string name() const override { return engine_->control().name() + ", by the copy engines"; }
  Device device() const override { return device_; }
  Memory allocate(std::int64_t bytes) override { return engine_->arena().allocate(bytes); }
  std::optional<std::string> failure() const override { return engine_->control().failure(); }
  void flush() override { engine_->flush(); }

 protected:
  void spread(const std::string& failure) noexcept override {
    engine_->control().abort(Error(ErrorCode::peer, failure));
  }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override {
    if (channel == kHostChannel || bytes.empty()) {
      return std::make_unique<internal::ControlTransfer>(engine_->control().send(to, channel, bytes));
    }
    return start(true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size(), stream);
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override {
    if (channel == kHostChannel || bytes.empty()) {
      return std::make_unique<internal::ControlTransfer>(engine_->control().receive(from, channel, bytes));
    }
    return start(false, from, channel, bytes.data(), bytes.size(), stream);
  }

 private:
  std::unique_ptr<PendingTransfer> start(bool sends, int peer, int channel, std::byte* data, std::size_t bytes,
                                         void* stream) {
    return std::make_unique<CopyTransfer>(*engine_, engine_->add({sends, peer, channel, data, bytes}, stream));
  }

  Device device_;
  std::unique_ptr<CopyEngine> engine_;
};

}  // namespace

std::optional<std::string> copies_missing(Communicator& control, const Device& device) {
  if (device.kind != DeviceKind::cuda) {
    internal::fail_argument("device", "cpu", "a CUDA device, whose memory is copied from process to process");
  }
  struct Card {
    std::array<char, 256> machine{};
    std::int64_t process = 0;
    SharedKey key{};
    std::array<char, 256> failure{};  // empty: none
  };
  Card mine;
  const auto note = [&mine](const std::string& text) {
    std::copy_n(text.begin(), std::min(text.size(), mine.failure.size() - 1), mine.failure.begin());
  };
  ::gethostname(mine.machine.data(), mine.machine.size() - 1);
  mine.process = ::getpid();
  std::shared_ptr<std::byte> probe;
  try {
    probe = internal::allocate_shared(device.index, 1, mine.key);
  } catch (const Error& error) {
    note(error.what());
  }
  const auto cards = [&] {
    std::vector<Card> all;
    for (const auto& bytes : control.gather(std::as_bytes(std::span(&mine, 1)))) {
      std::memcpy(&all.emplace_back(), bytes.data(), sizeof(Card));
    }
    return all;
  };
  const auto failure_of = [](const std::vector<Card>& all) -> std::optional<std::string> {
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank].failure.front() != '\0') {
        return "rank " + std::to_string(rank) + ": " + all[rank].failure.data();
      }
    }
    return std::nullopt;
  };
  const std::vector<Card> all = cards();
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    const std::string pair = "ranks 0 and " + std::to_string(rank);
    if (all[rank].machine != all.front().machine) {
      return pair + " are on different machines";
    }
    if (all[rank].process == all.front().process) {
      return pair + " are threads of one process";
    }
  }
  if (auto failure = failure_of(all)) {
    return failure;
  }
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (static_cast<int>(rank) == control.rank()) {
      continue;
    }
    try {
      const internal::OpenedMemory theirs(device.index, all[rank].key);
    } catch (const Error& error) {
      note("memory of rank " + std::to_string(rank) + ": " + error.what());
      break;
    }
  }
  return failure_of(cards());  // nobody frees a probe that another one has open
}

std::unique_ptr<Communicator> copy_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options) {
  if (const auto missing = copies_missing(*control, options.device)) {
    throw Error(ErrorCode::unsupported, "copies between processes: " + *missing);
  }
  return std::make_unique<CopyCommunicator>(std::move(control), options);
}

}  // namespace tessera
