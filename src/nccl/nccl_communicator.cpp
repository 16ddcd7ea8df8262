// All transfers of a step are one group of NCCL's: in groups of their own, two ranks that both send first would wait for each
// other. The group runs in a stream of its own, of high priority, so that its blocks start before those of the next kernel.
#include <array>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/stream.h"
#include "nccl/control_transfer.h"
#include "nccl/library.h"
#include "nccl/message_queue.h"
#include "tessera/nccl.h"

namespace tessera {

namespace {

using Clock = PendingTransfer::Clock;
using internal::DeviceEvent;

struct Operation : internal::DeviceMessage {
  std::shared_ptr<DeviceEvent> started;
  std::shared_ptr<DeviceEvent> finished;  // of the whole group; null until it has been started
};

class Engine {
 public:
  Engine(std::unique_ptr<Communicator> control, const NcclOptions& options)
      : control_(std::move(control)), options_(options), stream_(options.device.index) {
    start();
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() {
    if (comm_ == nullptr) {
      return;
    }
    const internal::CurrentDevice current(options_.device.index);
    if (failed_ || control_->failure()) {
      internal::nccl().abort(comm_);
    } else {
      internal::settle_stream(options_.device.index, stream_.handle());
      internal::nccl().finalize(comm_);
      // Until all that NCCL has under way is done, which others may keep from ending.
      const auto deadline = Clock::now() + options_.communicator.timeout;
      NcclState state = state_now();
      while (state == NcclState::busy && Clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        state = state_now();
      }
      state == NcclState::idle ? internal::nccl().destroy(comm_) : internal::nccl().abort(comm_);
    }
  }

  Communicator& control() { return *control_; }
  int device() const { return options_.device.index; }

  std::shared_ptr<Operation> add(internal::DeviceMessage message, void* stream) {
    require_sound();
    return posted_.add(std::move(message), device(), stream);
  }

  void flush() {
    if (posted_.empty()) {
      return;
    }
    const std::vector<std::shared_ptr<Operation>> group = posted_.take();
    agree(group);
    const internal::CurrentDevice current(device());
    auto started = std::make_shared<DeviceEvent>(device());
    auto finished = std::make_shared<DeviceEvent>(device());
    for (const auto& operation : group) {
      operation->ready->hold(device(), stream_.handle());
    }
    started->record(stream_.handle());
    require(internal::nccl().group_start(), "ncclGroupStart");
    for (const auto& one : group) {
      require(one->sends ? internal::nccl().send(one->data, one->bytes, internal::kNcclBytes, one->peer, comm_,
                                                 stream_.handle())
                         : internal::nccl().receive(one->data, one->bytes, internal::kNcclBytes, one->peer, comm_,
                                                    stream_.handle()),
              one->sends ? "ncclSend" : "ncclRecv");
    }
    require(internal::nccl().group_end(), "ncclGroupEnd");
    settle("ncclGroupEnd");
    finished->record(stream_.handle());
    for (const auto& operation : group) {
      operation->started = started;
      operation->finished = finished;
    }
  }

  void wait(Operation& operation, void* stream) {
    if (!operation.finished) {
      flush();
    }
    const auto deadline = Clock::now() + options_.communicator.timeout;
    while (!operation.finished->reached()) {
      if (state_now() == NcclState::failed) {
        fail("rank " + std::to_string(control_->rank()) + " failed: NCCL reports an error of its transfer with rank " +
             std::to_string(operation.peer));
      }
      require_sound();
      if (Clock::now() > deadline) {
        fail("rank " + std::to_string(operation.peer) + " was silent for " + timeout_text() + " s, as rank " +
             std::to_string(control_->rank()) + " found");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    operation.finished->hold(device(), stream);
  }

  // Its memory goes away.
  void drop(Operation& operation) noexcept {
    operation.dropped = true;
    if (!operation.finished) {
      return;
    }
    if (failed_ || control_->failure()) {
      abort();
    }
    operation.finished->settle();
  }

  void spread(const std::string& failure) noexcept { control_->abort(Error(ErrorCode::peer, failure)); }

 private:
  enum class NcclState : std::uint8_t { idle, busy, failed };

  std::string timeout_text() const {
    return internal::to_text(std::chrono::duration<double>(options_.communicator.timeout).count());
  }

  NcclState state_now() const {
    internal::NcclResult state = internal::kNcclSuccess;
    if (comm_ == nullptr || internal::nccl().async_error(comm_, &state) != internal::kNcclSuccess) {
      return NcclState::failed;
    }
    return state == internal::kNcclSuccess      ? NcclState::idle
           : state == internal::kNcclInProgress ? NcclState::busy
                                                : NcclState::failed;
  }

  // Kernels that still wait for somebody end by this.
  void abort() noexcept {
    failed_ = true;
    if (comm_ != nullptr) {
      const internal::CurrentDevice current(device());
      internal::nccl().abort(std::exchange(comm_, nullptr));
    }
  }

  [[noreturn]] void fail(const std::string& text) {
    control_->abort(Error(ErrorCode::peer, text));
    const std::string first = control_->failure().value_or(text);
    abort();
    throw Error(ErrorCode::peer, first);
  }

  void require_sound() {
    if (const auto failure = control_->failure()) {
      abort();
      throw Error(ErrorCode::peer, *failure);
    }
  }

  void require(internal::NcclResult result, const char* call) {
    if (result != internal::kNcclSuccess && result != internal::kNcclInProgress) {
      fail("rank " + std::to_string(control_->rank()) + " failed: " + call + ": " +
           internal::nccl().error_string(result));
    }
  }

  // A call that does not block has an end all the same.
  void settle(const char* call) {
    const auto deadline = Clock::now() + options_.communicator.timeout;
    for (NcclState state = state_now(); state != NcclState::idle; state = state_now()) {
      require_sound();
      if (state == NcclState::failed || Clock::now() > deadline) {
        fail("rank " + std::to_string(control_->rank()) + " failed: " + call +
             (state == NcclState::failed ? " reports an error" : " did not end in " + timeout_text() + " s"));
      }
      std::this_thread::yield();
    }
  }

  void start() {
    internal::NcclUniqueId id{};
    const internal::CurrentDevice current(device());
    if (control_->rank() == 0) {
      require(internal::nccl().get_unique_id(&id), "ncclGetUniqueId");
    }
    const auto all = control_->gather(std::as_bytes(std::span(&id, 1)));
    std::memcpy(&id, all.front().data(), sizeof id);
    internal::NcclConfig config;
    require(internal::nccl().init_rank_config(&comm_, control_->size(), id, control_->rank(), &config),
            "ncclCommInitRankConfig");
    settle("ncclCommInitRankConfig");
  }

  // Each end tells the other its size, and waits for the other's. `control` finds out who is missing.
  void agree(const std::vector<std::shared_ptr<Operation>>& group) {
    std::vector<std::array<std::uint64_t, 2>> sizes(group.size());  // ours and theirs
    std::vector<Transfer> tokens;
    for (std::size_t n = 0; n < group.size(); ++n) {
      sizes[n] = {group[n]->bytes, 0};
      const int peer = group[n]->peer;
      const bool sends = group[n]->sends;
      tokens.push_back(control_->receive(peer, sends ? kOfReceivers : kOfSenders, bytes_of(sizes[n][1])));
      tokens.push_back(control_->send(peer, sends ? kOfSenders : kOfReceivers, bytes_of(sizes[n][0])));
    }
    for (Transfer& token : tokens) {
      try {
        token.wait();
      } catch (const Error&) {
        abort();
        throw;
      }
    }
    for (std::size_t n = 0; n < group.size(); ++n) {
      if (sizes[n][0] != sizes[n][1]) {
        const int sender = group[n]->sends ? control_->rank() : group[n]->peer;
        const int receiver = group[n]->sends ? group[n]->peer : control_->rank();
        const auto size = [&](int rank) { return std::to_string(sizes[n][rank == control_->rank() ? 0 : 1]); };
        fail("rank " + std::to_string(sender) + " sends " + size(sender) + " bytes, and rank " +
             std::to_string(receiver) + " expects " + size(receiver));
      }
    }
  }
  // Channels of `control`: both ends go through a group in the same order.
  static constexpr int kOfSenders = 0;
  static constexpr int kOfReceivers = 1;
  static std::span<std::byte> bytes_of(std::uint64_t& value) {
    return {reinterpret_cast<std::byte*>(&value), sizeof value};
  }

  std::unique_ptr<Communicator> control_;
  NcclOptions options_;
  internal::CopyStream stream_;
  internal::NcclComm comm_ = nullptr;
  bool failed_ = false;
  internal::MessageQueue<Operation> posted_;
};

class NcclTransfer final : public PendingTransfer {
 public:
  NcclTransfer(Engine& engine, std::shared_ptr<Operation> operation)
      : engine_(engine), operation_(std::move(operation)) {}
  ~NcclTransfer() override {
    if (!awaited_) {
      engine_.drop(*operation_);
    }
  }
  void wait(void* stream) override {
    if (!awaited_) {
      engine_.wait(*operation_, stream);
      awaited_ = true;
    }
  }
  Clock::time_point finished_at() const override { return operation_->finished->time(); }
  std::optional<Clock::time_point> started_at() const override { return operation_->started->time(); }

 private:
  Engine& engine_;
  std::shared_ptr<Operation> operation_;
  bool awaited_ = false;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, const NcclOptions& options)
      : device_(options.device),
        rank_(control->rank()),
        size_(control->size()),
        engine_(std::make_unique<Engine>(std::move(control), options)) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "nccl"; }
  Device device() const override { return device_; }
  Memory allocate(std::int64_t bytes) override { return internal::allocate_on_device(device_.index, bytes); }
  void flush() override { engine_->flush(); }
  bool transfers_are_kernels() const override { return true; }
  std::optional<std::string> failure() const override { return engine_->control().failure(); }

 protected:
  void spread(const std::string& failure) noexcept override { engine_->spread(failure); }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override {
    if (channel == kHostChannel) {
      return std::make_unique<internal::ControlTransfer>(engine_->control().send(to, channel, bytes));
    }
    // One Operation serves both directions.
    return start(true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size(), stream);
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override {
    if (channel == kHostChannel) {
      return std::make_unique<internal::ControlTransfer>(engine_->control().receive(from, channel, bytes));
    }
    return start(false, from, channel, bytes.data(), bytes.size(), stream);
  }

 private:
  std::unique_ptr<PendingTransfer> start(bool sends, int peer, int channel, std::byte* data, std::size_t bytes,
                                         void* stream) {
    return std::make_unique<NcclTransfer>(*engine_, engine_->add({sends, peer, channel, data, bytes}, stream));
  }

  Device device_;
  int rank_;
  int size_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> control, const NcclOptions& options) {
  if (options.communicator.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.communicator.timeout.count()}, "1 or more");
  }
  if (options.device.kind != DeviceKind::cuda) {
    internal::fail_argument("device", "cpu", "a CUDA device, since messages go by NCCL");
  }
  internal::nccl();
  internal::cuda_device(options.device.index);
  return std::make_unique<NcclCommunicator>(std::move(control), options);
}

}  // namespace tessera
