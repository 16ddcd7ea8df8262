#include "shared_memory.h"

#include <utility>

namespace tessera::python {

namespace {

class InnerTransfer final : public PendingTransfer {
 public:
  explicit InnerTransfer(Transfer transfer) : transfer_(std::move(transfer)) {}
  void wait(void* stream) override { transfer_.wait(stream); }
  Clock::time_point finished_at() const override { return transfer_.finished_at(); }
  std::optional<Clock::time_point> started_at() const override { return transfer_.started_at(); }

 private:
  Transfer transfer_;
};

}  // namespace

std::int64_t MemorySharing::memory_bytes() const {
  std::int64_t bytes = 0;
  for (const Slot& slot : slots_) {
    bytes += slot.bytes;
  }
  return bytes;
}

Communicator::Memory MemorySharing::allocate(std::int64_t bytes) {
  if (next_ == slots_.size()) {
    slots_.emplace_back();
  }
  Slot& slot = slots_[next_++];
  if (slot.bytes < bytes) {
    slot.memory.reset();  // before, so that both need not fit; plans that are kept hold theirs
    slot.bytes = 0;
    slot.memory = inner_->allocate(bytes);
    slot.bytes = bytes;
  }
  return slot.memory;
}

// As it is: an Error(peer) gets no rank of its own in front.
void MemorySharing::spread(const std::string& failure) noexcept { inner_->abort(Error(ErrorCode::peer, failure)); }

std::unique_ptr<PendingTransfer> MemorySharing::start_send(int to, int channel, std::span<const std::byte> bytes,
                                                           void* stream) {
  return std::make_unique<InnerTransfer>(inner_->send(to, channel, bytes, stream));
}

std::unique_ptr<PendingTransfer> MemorySharing::start_receive(int from, int channel, std::span<std::byte> bytes,
                                                              void* stream) {
  return std::make_unique<InnerTransfer>(inner_->receive(from, channel, bytes, stream));
}

}  // namespace tessera::python
