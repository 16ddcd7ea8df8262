// Ranks on the command line: processes that mpirun or torchrun started, or threads of this one.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "tessera/distributed.h"
#include "tessera/nccl.h"

namespace tessera::cli {

struct RankFlags {
  std::optional<RingSchedule> schedule;  // of --distributed, without which nothing is distributed
  SequenceLayout::Kind layout = SequenceLayout::Kind::zigzag;
  int ranks = 0;  // of --ranks: threads; of processes the number that must have been started
  Links links;
  CommunicatorOptions communicator;
  bool baseline = true;                                    // bench: time one rank alone, too
  DeviceTransport transport = DeviceTransport::automatic;  // between GPUs of processes

  void add(::CLI::App& app);
  // Throws Error for a flag that would mean nothing: without --distributed, or of GPUs where `device` is none.
  void check(const ::CLI::App& app, const Device& device) const;
  // With the device of this rank in place of the plan's.
  DistributedOptions options(const PlanOptions& plan, const Communicator& communicator) const;
};

// --layout, whose words are those of layout_name.
void add_layout(::CLI::App& app, SequenceLayout::Kind& layout);

// Runs `body` on every rank: this process's one under mpirun or torchrun, else on --ranks threads (2 when it is left out).
// On GPUs ranks take the devices from `device` on, in turn. Returns the status of rank 0 where that is here, else 0. Errors of
// one rank are told to the others.
int run_ranks(const RankFlags& flags, const Device& device, const std::function<int(Communicator&)>& body);

// "Open MPI v4.1.4", or why there is none.
std::string mpi_text();

}  // namespace tessera::cli
