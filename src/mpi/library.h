// MPI itself: its header, its errors, its beginning and its end.
#pragma once

#include <atomic>
#include <memory>

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

namespace tessera::internal {

// Throws Error(peer) unless the call succeeded.
void check_mpi(int status, const char* call);

// MPI, started once for the process and ended with the last group.
class MpiLibrary {
 public:
  MpiLibrary();
  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;
  ~MpiLibrary();
  // A lost rank would block the end.
  void abandon() { abandoned_ = true; }

 private:
  bool ours_ = false;
  std::atomic<bool> abandoned_ = false;
};

// The one of this process, for as long as somebody holds it.
std::shared_ptr<MpiLibrary> mpi_library();

}  // namespace tessera::internal
