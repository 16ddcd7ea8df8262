#include <array>
#include <memory>
#include <string>
#include <utility>

#include "core/fail.h"
#include "mpi/library.h"
#include "mpi/progress.h"
#include "tessera/mpi.h"

namespace tessera {

namespace {

using Clock = PendingTransfer::Clock;

class MpiTransfer final : public PendingTransfer {
 public:
  MpiTransfer(internal::MpiProgress& progress, std::shared_ptr<internal::MpiOperation> operation)
      : progress_(progress), operation_(std::move(operation)) {}
  ~MpiTransfer() override {
    if (!done_) {
      progress_.cancel(*operation_);
    }
  }
  void wait(void* /*stream*/) override {
    if (!done_) {
      progress_.wait(*operation_);
      done_ = true;
    }
  }
  Clock::time_point finished_at() const override { return operation_->finished; }

 private:
  internal::MpiProgress& progress_;
  std::shared_ptr<internal::MpiOperation> operation_;
  bool done_ = false;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(const MpiOptions& options) : library_(internal::mpi_library()) {
    const MPI_Comm given = options.comm == nullptr ? MPI_COMM_WORLD : *static_cast<const MPI_Comm*>(options.comm);
    internal::check_mpi(MPI_Comm_dup(given, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    progress_ = std::make_unique<internal::MpiProgress>(comm_, rank_, size_, options.communicator.timeout);
  }
  ~MpiCommunicator() override {
    if (progress_->stop()) {
      MPI_Comm_free(&comm_);
    } else {
      library_->abandon();
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }
  std::optional<std::string> failure() const override { return progress_->failure(); }

 protected:
  void spread(const std::string& failure) noexcept override { progress_->spread(failure); }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* /*stream*/) override {
    // MPI_Isend takes its memory as const; one operation serves both directions.
    return start(true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size());
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* /*stream*/) override {
    return start(false, from, channel, bytes.data(), bytes.size());
  }

 private:
  std::unique_ptr<PendingTransfer> start(bool sends, int peer, int channel, std::byte* data, std::size_t bytes) {
    auto operation = std::make_shared<internal::MpiOperation>();
    operation->sends = sends;
    operation->peer = peer;
    operation->channel = channel;
    operation->data = data;
    operation->bytes = bytes;
    progress_->add(operation);
    return std::make_unique<MpiTransfer>(*progress_, std::move(operation));
  }

  std::shared_ptr<internal::MpiLibrary> library_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::unique_ptr<internal::MpiProgress> progress_;
};

}  // namespace

std::unique_ptr<Communicator> mpi_communicator(const MpiOptions& options) {
  if (options.communicator.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.communicator.timeout.count()}, "1 or more");
  }
  return std::make_unique<MpiCommunicator>(options);
}

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data(), static_cast<std::size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace tessera
