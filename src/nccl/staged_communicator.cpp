// Messages of device memory through pinned host memory and any group of host ranks. A send has to be in host memory before
// it leaves: that copy is not hidden, the transfer itself is.
#include <utility>
#include <vector>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/stream.h"
#include "nccl/control_transfer.h"
#include "tessera/nccl.h"

namespace tessera {

namespace {

using internal::DeviceEvent;

// Pinned memory is slow to get: it is kept.
class PinnedPool {
 public:
  explicit PinnedPool(int device) : device_(device) {}
  std::shared_ptr<std::byte> take(std::size_t bytes) {
    for (Piece& piece : pieces_) {
      if (piece.memory.use_count() == 1 && piece.bytes >= bytes) {
        return piece.memory;
      }
    }
    pieces_.push_back({internal::allocate_pinned(device_, static_cast<std::int64_t>(bytes)), bytes});
    return pieces_.back().memory;
  }

 private:
  struct Piece {
    std::shared_ptr<std::byte> memory;
    std::size_t bytes;
  };
  int device_;
  std::vector<Piece> pieces_;
};

struct Staging {
  Staging(std::unique_ptr<Communicator> control_, int device_)
      : control(std::move(control_)), device(device_), pool(device_), to_host(device_), from_host(device_) {}

  std::unique_ptr<Communicator> control;
  int device;
  PinnedPool pool;
  internal::CopyStream to_host;
  internal::CopyStream from_host;
};

class StagedSend final : public PendingTransfer {
 public:
  StagedSend(Staging& staging, int to, int channel, std::span<const std::byte> bytes, void* stream)
      : staging_(staging),
        to_(to),
        channel_(channel),
        bytes_(bytes.size()),
        memory_(staging.pool.take(bytes.size())),
        copied_(staging.device) {
    DeviceEvent ready(staging.device);
    ready.record(stream);
    ready.hold(staging.device, staging.to_host.handle());
    staging.to_host.copy_to_host(memory_.get(), bytes.data(), bytes.size());
    copied_.record(staging.to_host.handle());
  }
  ~StagedSend() override { copied_.settle(); }
  void start() {
    if (!transfer_.valid()) {
      copied_.synchronize();
      transfer_ = staging_.control->send(to_, channel_, {memory_.get(), bytes_});
    }
  }
  void wait(void* /*stream*/) override {
    start();
    transfer_.wait();
  }
  Clock::time_point finished_at() const override { return transfer_.finished_at(); }

 private:
  Staging& staging_;
  int to_;
  int channel_;
  std::size_t bytes_;
  std::shared_ptr<std::byte> memory_;
  DeviceEvent copied_;
  Transfer transfer_;  // goes first: it may still read the memory
};

class StagedReceive final : public PendingTransfer {
 public:
  StagedReceive(Staging& staging, int from, int channel, std::span<std::byte> bytes, void* stream)
      : staging_(staging),
        target_(bytes),
        memory_(staging.pool.take(bytes.size())),
        ready_(staging.device),
        copied_(staging.device),
        transfer_(staging.control->receive(from, channel, {memory_.get(), bytes.size()})) {
    ready_.record(stream);
  }
  ~StagedReceive() override { copied_.settle(); }
  void wait(void* stream) override {
    if (!arrived_) {
      transfer_.wait();
      ready_.hold(staging_.device, staging_.from_host.handle());
      staging_.from_host.copy_from_host(target_.data(), memory_.get(), target_.size());
      copied_.record(staging_.from_host.handle());
      arrived_ = true;
    }
    copied_.hold(staging_.device, stream);
  }
  Clock::time_point finished_at() const override { return copied_.time(); }

 private:
  Staging& staging_;
  std::span<std::byte> target_;
  std::shared_ptr<std::byte> memory_;
  DeviceEvent ready_;
  DeviceEvent copied_;
  Transfer transfer_;
  bool arrived_ = false;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> control, const Device& device)
      : device_(device), staging_(std::move(control), device.index) {}

  int rank() const override { return staging_.control->rank(); }
  int size() const override { return staging_.control->size(); }
  std::string name() const override { return staging_.control->name() + ", through host memory"; }
  Device device() const override { return device_; }
  Memory allocate(std::int64_t bytes) override { return internal::allocate_on_device(device_.index, bytes); }
  std::optional<std::string> failure() const override { return staging_.control->failure(); }
  void flush() override {
    for (StagedSend* send : std::exchange(posted_, {})) {
      send->start();
    }
  }

 protected:
  void spread(const std::string& failure) noexcept override {
    posted_.clear();
    staging_.control->abort(Error(ErrorCode::peer, failure));
  }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override {
    if (channel == kHostChannel || bytes.empty()) {
      return std::make_unique<internal::ControlTransfer>(staging_.control->send(to, channel, bytes));
    }
    auto send = std::make_unique<StagedSend>(staging_, to, channel, bytes, stream);
    posted_.push_back(send.get());
    return send;
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override {
    if (channel == kHostChannel || bytes.empty()) {
      return std::make_unique<internal::ControlTransfer>(staging_.control->receive(from, channel, bytes));
    }
    return std::make_unique<StagedReceive>(staging_, from, channel, bytes, stream);
  }

 private:
  Device device_;
  Staging staging_;
  std::vector<StagedSend*> posted_;
};

}  // namespace

std::unique_ptr<Communicator> staged_communicator(std::unique_ptr<Communicator> control, const Device& device) {
  if (device.kind != DeviceKind::cuda) {
    internal::fail_argument("device", "cpu", "a CUDA device, whose messages go through host memory");
  }
  internal::cuda_device(device.index);
  return std::make_unique<StagedCommunicator>(std::move(control), device);
}

}  // namespace tessera
