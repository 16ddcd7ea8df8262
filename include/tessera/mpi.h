// Ranks that are processes of an MPI job. In the library target tessera::mpi, which builds where CMake finds MPI.
#pragma once

#include <memory>
#include <string>

#include "tessera/communicator.h"

namespace tessera {

struct MpiOptions {
  CommunicatorOptions communicator;
  const void* comm = nullptr;  // an MPI_Comm to duplicate, by its address; null: MPI_COMM_WORLD
};

// This process's end of the group of all processes in the MPI communicator; collective. A thread of its own moves messages
// along while the caller computes, since MPI promises no progress between calls.
//
// Starts MPI where that has not been done, with MPI_THREAD_MULTIPLE, and then ends it with the last Communicator; MPI cannot be
// started again after that. When MPI runs already, it must have been started with MPI_THREAD_MULTIPLE. After a failure MPI is
// left as it is, since a lost rank would block its end: the process should exit.
//
// Processes are CPU ranks: messages are host memory. Throws Error(unsupported) when MPI has too low a thread level or has ended.
std::unique_ptr<Communicator> mpi_communicator(const MpiOptions& options = {});

// For example "Open MPI v4.1.4".
std::string mpi_library_version();

}  // namespace tessera
