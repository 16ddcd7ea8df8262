// A message of host memory, or one without bytes, that the control group of a device transport carries.
#pragma once

#include <utility>

#include "tessera/communicator.h"

namespace tessera::internal {

class ControlTransfer final : public PendingTransfer {
 public:
  explicit ControlTransfer(Transfer transfer) : transfer_(std::move(transfer)) {}
  void wait(void* /*stream*/) override { transfer_.wait(); }
  Clock::time_point finished_at() const override { return transfer_.finished_at(); }

 private:
  Transfer transfer_;
};

}  // namespace tessera::internal
