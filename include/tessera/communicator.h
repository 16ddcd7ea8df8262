// How ranks that share one problem exchange memory.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tessera/error.h"
#include "tessera/types.h"

namespace tessera {

struct CommunicatorOptions {
  // The longest that one transfer may be waited for. It has to be longer than the longest step of a peer.
  std::chrono::milliseconds timeout{60'000};
};

// What one rank has sent and received. Only the bytes of the messages themselves are counted.
struct Traffic {
  std::int64_t bytes_sent = 0;
  std::int64_t bytes_received = 0;
  std::int64_t messages_sent = 0;
  bool operator==(const Traffic&) const = default;
};

// One send or receive that a transport has under way. Its destructor takes it back, unless it is finished: afterwards
// nobody reads or writes the memory.
class PendingTransfer {
 public:
  using Clock = std::chrono::steady_clock;

  PendingTransfer() = default;
  PendingTransfer(const PendingTransfer&) = delete;
  PendingTransfer& operator=(const PendingTransfer&) = delete;
  virtual ~PendingTransfer() = default;

  // As Transfer::wait.
  virtual void wait(void* stream) = 0;
  // When it was finished; after wait() alone, and on a device once that has happened.
  virtual Clock::time_point finished_at() const = 0;
  // When its bytes began to move, where that is known.
  virtual std::optional<Clock::time_point> started_at() const { return std::nullopt; }
};

// The handle of a send or receive. A default-constructed one is finished.
class Transfer {
 public:
  Transfer() = default;
  explicit Transfer(std::unique_ptr<PendingTransfer> pending) : pending_(std::move(pending)) {}

  bool valid() const { return pending_ != nullptr; }
  // Until the memory may be used again (send) or holds the message (receive). On a device, work that is put into
  // `stream` afterwards waits, and the host does not. Throws Error(peer) that names the rank which failed, left or was
  // silent for longer than the timeout.
  void wait(void* stream = nullptr) {
    if (pending_) {
      pending_->wait(stream);
    }
  }
  // As those of PendingTransfer.
  PendingTransfer::Clock::time_point finished_at() const { return pending_->finished_at(); }
  std::optional<PendingTransfer::Clock::time_point> started_at() const { return pending_->started_at(); }

 private:
  std::unique_ptr<PendingTransfer> pending_;
};

// One rank's end of a group of ranks. A transport implements the protected part. One thread at a time may use it.
//
// A failure anywhere is a failure everywhere: once a rank has failed, left early or been silent for longer than the
// timeout, every operation of every rank throws Error(peer) with the same text, which names that rank. The group is of
// no further use then.
class Communicator {
 public:
  // Messages between two ranks arrive in the order of their sends within one channel; channels do not wait for each other.
  static constexpr int kChannels = 8;
  // Messages of this one are in host memory, wherever the others are.
  static constexpr int kHostChannel = kChannels - 1;
  using Memory = std::shared_ptr<std::byte>;

  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;  // of the transport: "local", "mpi"
  // Where the memory of messages is, but for those of kHostChannel.
  virtual Device device() const { return {}; }
  // Memory for messages, aligned to kWorkspaceAlignment, on device(). Transports that register memory do it here.
  virtual Memory allocate(std::int64_t bytes);

  // Starts a transfer and returns at once. The memory must live as long as the handle. Sizes of both ends must agree.
  // On a device the transfer begins after the work that `stream` already holds.
  Transfer send(int to, int channel, std::span<const std::byte> bytes, void* stream = nullptr);
  Transfer receive(int from, int channel, std::span<std::byte> bytes, void* stream = nullptr);
  // Transports that move several messages as one start those here that have been posted. Every rank has to call it at the same
  // points: between two of them both ends of a message are posted. A wait for what has not been started calls it.
  virtual void flush() {}
  // Transfers between devices are kernels, which have to be started before those that leave them no multiprocessor.
  virtual bool transfers_are_kernels() const { return false; }

  // Every rank's `mine`, in the order of ranks; all have the same length. Each rank has to call it.
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine);

  // Tells every rank that this one failed, and why; an Error(peer), which is about another rank, is passed on as it is. Later
  // operations throw, here too.
  void abort(const std::exception& error) noexcept;

  // Why the group has failed, as far as this rank has heard. Does not wait.
  virtual std::optional<std::string> failure() const { return std::nullopt; }

  const Traffic& traffic() const { return traffic_; }

 protected:
  // Makes the group fail with this text, unless it has failed already.
  virtual void spread(const std::string& failure) noexcept = 0;
  // Throw Error(peer) when the group has failed.
  virtual std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                                      void* stream) = 0;
  virtual std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                         void* stream) = 0;

 private:
  void require_peer(const char* argument, int peer, int channel) const;
  Traffic traffic_;
};

// A group whose ranks are threads of this process. Element r belongs to rank r; a rank that destroys its end has left.
// Throws Error(invalid_argument) for less than one rank.
std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, const CommunicatorOptions& options = {});
// The same with the memory of rank r on devices[r], all CUDA devices or all the CPU. Ranks may share a device. Messages go
// straight from device to device on the copy engines, which leaves all multiprocessors to the kernels.
std::vector<std::unique_ptr<Communicator>> local_communicators(const std::vector<Device>& devices,
                                                               const CommunicatorOptions& options = {});

// Runs `body` once for each rank of a local group, each in a thread of its own, and joins them. When bodies throw, the
// others are told, and the first exception that is not about another rank is thrown again.
void run_local_ranks(int ranks, const std::function<void(Communicator&)>& body,
                     const CommunicatorOptions& options = {});
void run_local_ranks(const std::vector<Device>& devices, const std::function<void(Communicator&)>& body,
                     const CommunicatorOptions& options = {});

}  // namespace tessera
