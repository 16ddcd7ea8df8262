// Which of the transports between devices a group of processes takes.
#include <algorithm>
#include <array>
#include <utility>

#include "tessera/nccl.h"

namespace tessera {

namespace {

// Of all ranks, or some would wait for others that do not use it.
bool all_have_nccl(Communicator& control) {
  const std::array<std::byte, 1> mine{nccl_missing() ? std::byte{0} : std::byte{1}};
  const auto all = control.gather(mine);
  return std::all_of(all.begin(), all.end(), [](const auto& theirs) { return theirs.front() == std::byte{1}; });
}

DeviceTransport first_of(Communicator& control, const Device& device) {
  if (!copies_missing(control, device)) {
    return DeviceTransport::copy;
  }
  return all_have_nccl(control) ? DeviceTransport::nccl : DeviceTransport::staged;
}

}  // namespace

std::unique_ptr<Communicator> device_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options,
                                                  DeviceTransport transport) {
  if (transport == DeviceTransport::automatic) {
    transport = first_of(*control, options.device);
  }
  switch (transport) {
    case DeviceTransport::copy:
      return copy_communicator(std::move(control), options);
    case DeviceTransport::nccl:
      return nccl_communicator(std::move(control), options);
    default:
      return staged_communicator(std::move(control), options.device);
  }
}

}  // namespace tessera
