// Ranks that are processes, or threads, each with a GPU of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tessera/communicator.h"

namespace tessera {

// Why NCCL cannot be used here: no libnccl.so.2, which is looked for when this is first asked, or one that is too old.
// nullopt when it can. TESSERA_NCCL_LIBRARY names another file.
std::optional<std::string> nccl_missing();
// For example "2.28.3". Throws Error(unsupported) with the reason above.
std::string nccl_version();

struct NcclOptions {
  Device device;  // of this rank; no two ranks may share one
  CommunicatorOptions communicator;
};

// Messages from device to device by NCCL. `control` is a group of the same ranks in host memory (mpi_communicator(), or one end
// of local_communicators()): it carries NCCL's id, agreements before transfers and failures. Collective. Both ends of a
// message agree before NCCL hears of it, so that no kernel waits on a device for a rank that is gone; a rank that is lost in
// the middle is named by `control`, and NCCL is aborted.
//
// Throws Error(unsupported) without NCCL or CUDA, Error(peer) when NCCL does not start on all ranks in time.
std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options);

// Why the ranks of `control` cannot copy from device to device by the copy engines: they are threads of one process (which
// local_communicators() serves), on several machines, or the system does not let processes share memory of devices (CUDA IPC).
// nullopt when they can; the same on every rank. Collective.
std::optional<std::string> copies_missing(Communicator& control, const Device& device);
// Messages by such copies. Kernels keep all multiprocessors, some of which NCCL's take. `control` carries agreements and
// failures as above. Messages are received in memory of allocate(), which this group keeps until it ends. Collective.
//
// Throws Error(unsupported) with the reason above.
std::unique_ptr<Communicator> copy_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options);

// The same through host memory: where there is no NCCL, or where ranks share a device.
std::unique_ptr<Communicator> staged_communicator(std::unique_ptr<Communicator> control, const Device& device);

enum class DeviceTransport : std::uint8_t {
  automatic,  // the first of these that is there on every rank
  copy,
  nccl,
  staged,
};
// One of the three above. Collective.
std::unique_ptr<Communicator> device_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options,
                                                  DeviceTransport transport = DeviceTransport::automatic);

}  // namespace tessera
