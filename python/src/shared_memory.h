// Plans of one rank that run one at a time need their memory one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/communicator.h"

namespace tessera::python {

// Another communicator, which hands the same memory to one plan after the other. What a plan asks for n-th is what the
// others asked for n-th, as long as that is large enough: all plans together hold as much as the largest of them, and
// one that differs from an earlier one by its seed or mask alone allocates nothing.
class MemorySharing final : public Communicator {
 public:
  explicit MemorySharing(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  // Frees what no plan holds.
  void forget() { slots_.clear(); }
  // What is allocated from here on may be what an earlier plan has.
  void next_plan() { next_ = 0; }
  std::int64_t memory_bytes() const;

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string name() const override { return inner_->name(); }
  Device device() const override { return inner_->device(); }
  Memory allocate(std::int64_t bytes) override;
  void flush() override { inner_->flush(); }
  bool transfers_are_kernels() const override { return inner_->transfers_are_kernels(); }
  std::optional<std::string> failure() const override { return inner_->failure(); }

 protected:
  void spread(const std::string& failure) noexcept override;
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override;
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override;

 private:
  struct Slot {
    Memory memory;
    std::int64_t bytes = 0;
  };

  std::unique_ptr<Communicator> inner_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

}  // namespace tessera::python
