#include <array>
#include <memory>
#include <string>
#include <utility>

#include "core/fail.h"
#include "mpi/library.h"
#include "mpi/progress.h"
#include "tessera/mpi.h"

namespace tessera {

std::unique_ptr<Communicator> mpi_communicator(const MpiOptions& options) {
  if (options.communicator.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.communicator.timeout.count()}, "1 or more");
  }
  std::shared_ptr<internal::MpiLibrary> library = internal::mpi_library();
  const MPI_Comm given = options.comm == nullptr ? MPI_COMM_WORLD : *static_cast<const MPI_Comm*>(options.comm);
  MPI_Comm comm = MPI_COMM_NULL;
  internal::check_mpi(MPI_Comm_dup(given, &comm), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  return std::make_unique<internal::ProgressCommunicator>(
      "mpi",
      std::make_unique<internal::MpiProgress>(std::move(library), comm, rank, size, options.communicator.timeout));
}

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data(), static_cast<std::size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace tessera
