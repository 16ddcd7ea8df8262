#include "mpi/library.h"

#include <array>
#include <mutex>
#include <string>

#include "tessera/error.h"

namespace tessera::internal {

void check_mpi(int status, const char* call) {
  if (status != MPI_SUCCESS) {
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    MPI_Error_string(status, text.data(), &length);
    throw Error(ErrorCode::peer, std::string(call) + " failed: " + text.data());
  }
}

MpiLibrary::MpiLibrary() {
  int running = 0;
  int ended = 0;
  MPI_Initialized(&running);
  MPI_Finalized(&ended);
  if (ended != 0) {
    throw Error(ErrorCode::unsupported, "MPI has ended in this process and cannot be started again");
  }
  int level = 0;
  if (running != 0) {
    MPI_Query_thread(&level);
  } else {
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
    ours_ = true;
  }
  if (level < MPI_THREAD_MULTIPLE) {
    throw Error(ErrorCode::unsupported, "MPI thread level: " + std::to_string(level) +
                                            "; accepted: MPI_THREAD_MULTIPLE, " + std::to_string(MPI_THREAD_MULTIPLE));
  }
}

MpiLibrary::~MpiLibrary() {
  if (ours_ && !abandoned_) {
    MPI_Finalize();
  }
}

std::shared_ptr<MpiLibrary> mpi_library() {
  static std::mutex mutex;
  static std::weak_ptr<MpiLibrary> current;
  const std::lock_guard lock(mutex);
  std::shared_ptr<MpiLibrary> found = current.lock();
  if (!found) {
    found = std::make_shared<MpiLibrary>();
    current = found;
  }
  return found;
}

}  // namespace tessera::internal
