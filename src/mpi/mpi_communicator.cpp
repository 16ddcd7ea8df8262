// All MPI calls but the first and the last are made by one thread for each group, which also exchanges signs of life: a
// peer that sends none is the one to blame for a wait that takes too long, wherever in the ring that is noticed.
#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <limits>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "core/fail.h"
#include "dist/blame.h"
#include "tessera/mpi.h"

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

namespace tessera {

namespace {

using Clock = PendingTransfer::Clock;

constexpr int kControlTag = Communicator::kChannels;

void check(int status, const char* call) {
  if (status != MPI_SUCCESS) {
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    MPI_Error_string(status, text.data(), &length);
    throw Error(ErrorCode::peer, std::string(call) + " failed: " + text.data());
  }
}

// MPI, started once for the process and ended with the last group.
class Library {
 public:
  Library() {
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
      check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
      ours_ = true;
    }
    if (level < MPI_THREAD_MULTIPLE) {
      throw Error(ErrorCode::unsupported, "MPI thread level: " + std::to_string(level) +
                                              "; accepted: MPI_THREAD_MULTIPLE, " +
                                              std::to_string(MPI_THREAD_MULTIPLE));
    }
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (ours_ && !abandoned_) {
      MPI_Finalize();
    }
  }
  // A lost rank would block the end.
  void abandon() { abandoned_ = true; }

 private:
  bool ours_ = false;
  std::atomic<bool> abandoned_ = false;
};

std::shared_ptr<Library> library() {
  static std::mutex mutex;
  static std::weak_ptr<Library> current;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Library> found = current.lock();
  if (!found) {
    found = std::make_shared<Library>();
    current = found;
  }
  return found;
}

// A sign of life, or the end of it.
struct Control {
  enum class Kind : std::int32_t { alive, goodbye, failure };
  Kind kind = Kind::alive;
  std::int32_t waiting_for = -1;
  std::array<char, 496> text{};
};

struct Operation {
  bool sends = false;
  int peer = 0;
  int channel = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  // Large messages are several of MPI's, which count in int.
  std::vector<MPI_Request> requests;
  bool done = false;
  Clock::time_point finished;
};

using Peer = internal::PeerSigns;

// The thread that talks to MPI, and what it shares with the caller under one mutex.
class Progress {
 public:
  Progress(MPI_Comm comm, int rank, int size, std::chrono::milliseconds timeout)
      : comm_(comm), rank_(rank), size_(size), timeout_(timeout), peers_(static_cast<std::size_t>(size)) {
    for (Peer& peer : peers_) {
      peer.heard = Clock::now();
    }
    thread_ = std::thread([this] { loop(); });
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // Says goodbye. Returns whether MPI may be ended.
  bool stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
    return failure_.empty();
  }

  void add(const std::shared_ptr<Operation>& operation) {
    const std::lock_guard lock(mutex_);
    require_sound();
    queue_.push_back(operation);
    changed_.notify_all();
  }

  void wait(Operation& operation) {
    std::unique_lock lock(mutex_);
    const auto deadline = Clock::now() + timeout_;
    waiting_for_ = operation.peer;
    while (!operation.done && failure_.empty()) {
      if (peers_[static_cast<std::size_t>(operation.peer)].left) {
        // What it sent before it left may still arrive.
        if (finished_.wait_for(lock, leaving_grace()) == std::cv_status::timeout && !operation.done &&
            failure_.empty()) {
          fail("rank " + std::to_string(operation.peer) + " left before its work was done");
        }
        continue;
      }
      if (finished_.wait_until(lock, deadline) == std::cv_status::timeout && !operation.done && failure_.empty()) {
        fail("rank " + std::to_string(culprit()) + " was silent for " +
             internal::to_text(std::chrono::duration<double>(timeout_).count()) + " s, as rank " +
             std::to_string(rank_) + " found");
      }
    }
    waiting_for_ = -1;
    if (!operation.done) {
      require_sound();
    }
  }

  // Until the thread has let go of the operation's memory. MPI cannot take a send back, and the peer of a receive would wait
  // for ever: so this is the end of the group.
  void cancel(const Operation& operation) {
    std::unique_lock lock(mutex_);
    if (!operation.done) {
      fail("rank " + std::to_string(rank_) + " failed: it took a transfer with rank " + std::to_string(operation.peer) +
           " back");
    }
    finished_.wait(lock, [&] { return operation.done || ended_; });
  }

  void spread(const std::string& failure) {
    const std::lock_guard lock(mutex_);
    fail(failure);
  }

  std::optional<std::string> failure() {
    const std::lock_guard lock(mutex_);
    return failure_.empty() ? std::nullopt : std::optional(failure_);
  }

 private:
  struct SentControl {
    Control control;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  Clock::duration interval() const {
    return std::clamp<Clock::duration>(timeout_ / 16, std::chrono::milliseconds(5), std::chrono::seconds(1));
  }
  Clock::duration leaving_grace() const {
    return std::max<Clock::duration>(interval(), std::chrono::milliseconds(100));
  }

  void require_sound() const {
    if (!failure_.empty()) {
      throw Error(ErrorCode::peer, failure_);
    }
  }

  void fail(const std::string& text) {
    if (failure_.empty()) {
      failure_ = text;
      failure_is_news_ = true;
    }
    finished_.notify_all();
    changed_.notify_all();
  }

  // Along those that wait for each other, to the first one that is not heard of or waits for nobody.
  int culprit() const {
    const auto silent_since = Clock::now() - std::max<Clock::duration>(timeout_ / 2, 4 * interval());
    return internal::culprit(peers_, rank_, waiting_for_, silent_since);
  }

  void loop() {
    try {
      listen();
      Clock::time_point next_sign = Clock::now();
      for (;;) {
        const Request request = next_request();
        if (request.failed) {
          spread_failure();
          break;
        }
        post(request.operations);
        test_active();
        hear();
        if (Clock::now() >= next_sign) {
          say({Control::Kind::alive, request.waiting_for, {}});
          next_sign = Clock::now() + interval();
        }
        if (request.stops && active_.empty()) {
          say({Control::Kind::goodbye, -1, {}});
          drain();
          break;
        }
      }
    } catch (const Error& error) {
      const std::lock_guard lock(mutex_);
      fail("rank " + std::to_string(rank_) + " failed: " + error.what());
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    finished_.notify_all();
  }

  // What the caller wants, without keeping it from asking for more while MPI copies.
  struct Request {
    std::deque<std::shared_ptr<Operation>> operations;
    int waiting_for = -1;
    bool stops = false;
    bool failed = false;
  };
  Request next_request() {
    std::unique_lock lock(mutex_);
    const bool quiet = queue_.empty() && active_.empty();
    const auto pause = quiet               ? std::chrono::microseconds(2000)
                       : waiting_for_ >= 0 ? std::chrono::microseconds(20)
                                           : std::chrono::microseconds(200);
    changed_.wait_for(lock, pause, [&] { return !queue_.empty() || stopping_ || failure_is_news_; });
    return {std::exchange(queue_, {}), waiting_for_, stopping_, !failure_.empty()};
  }

  void post(const std::deque<std::shared_ptr<Operation>>& operations) {
    constexpr std::size_t kMost = std::size_t{1} << 30;
    for (const auto& operation : operations) {
      for (std::size_t begin = 0; begin == 0 || begin < operation->bytes; begin += kMost) {
        const int count = static_cast<int>(std::min(kMost, operation->bytes - begin));
        MPI_Request& request = operation->requests.emplace_back(MPI_REQUEST_NULL);
        check(operation->sends ? MPI_Isend(operation->data + begin, count, MPI_BYTE, operation->peer,
                                           operation->channel, comm_, &request)
                               : MPI_Irecv(operation->data + begin, count, MPI_BYTE, operation->peer,
                                           operation->channel, comm_, &request),
              operation->sends ? "MPI_Isend" : "MPI_Irecv");
      }
      active_.push_back(operation);
    }
  }

  void test_active() {
    for (auto at = active_.begin(); at != active_.end();) {
      if (!test(**at)) {
        ++at;
        continue;
      }
      const std::lock_guard lock(mutex_);
      (*at)->finished = Clock::now();
      (*at)->done = true;
      finished_.notify_all();
      at = active_.erase(at);
    }
  }

  bool test(Operation& operation) {
    int all = 0;
    const int status =
        MPI_Testall(static_cast<int>(operation.requests.size()), operation.requests.data(), &all, MPI_STATUSES_IGNORE);
    if (status != MPI_SUCCESS) {
      throw Error(ErrorCode::peer, "the transfer with rank " + std::to_string(operation.peer) + " of " +
                                       std::to_string(operation.bytes) + " bytes failed in MPI");
    }
    return all != 0;
  }

  void listen() {
    check(MPI_Irecv(&incoming_, sizeof(Control), MPI_BYTE, MPI_ANY_SOURCE, kControlTag, comm_, &incoming_request_),
          "MPI_Irecv");
  }

  void hear() {
    for (;;) {
      int arrived = 0;
      MPI_Status status;
      check(MPI_Test(&incoming_request_, &arrived, &status), "MPI_Test");
      if (arrived == 0) {
        return;
      }
      const std::lock_guard lock(mutex_);
      Peer& peer = peers_[static_cast<std::size_t>(status.MPI_SOURCE)];
      peer.heard = Clock::now();
      peer.waiting_for = incoming_.waiting_for;
      if (incoming_.kind == Control::Kind::goodbye) {
        peer.left = true;
      } else if (incoming_.kind == Control::Kind::failure && failure_.empty()) {
        failure_ = incoming_.text.data();
      }
      finished_.notify_all();
      listen();
    }
  }

  void say(const Control& control) {
    sent_.remove_if([](SentControl& sent) {
      int done = 0;
      return MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
    });
    for (int peer = 0; peer < size_; ++peer) {
      // Those that have left still wait for the goodbye of the others.
      const bool left = peers_[static_cast<std::size_t>(peer)].left && control.kind != Control::Kind::goodbye;
      if (peer == rank_ || left) {
        continue;
      }
      SentControl& sent = sent_.emplace_back(SentControl{control, MPI_REQUEST_NULL});
      MPI_Isend(&sent.control, sizeof(Control), MPI_BYTE, peer, kControlTag, comm_, &sent.request);
    }
  }

  // The others may depend on MPI being called here for a moment more.
  void spread_failure() {
    Control control{Control::Kind::failure, -1, {}};
    const std::size_t length = std::min(failure_.size(), control.text.size() - 1);
    std::memcpy(control.text.data(), failure_.data(), length);
    if (failure_is_news_) {
      say(control);
    }
    const auto until = Clock::now() + leaving_grace();
    while (Clock::now() < until && !all_said()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  bool all_said() {
    return std::all_of(sent_.begin(), sent_.end(), [](SentControl& sent) {
      int done = 0;
      return MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
    });
  }

  // Everybody's goodbye: nobody ends MPI before all have stopped to use it.
  void drain() {
    bool all_left = false;
    while (!(all_left && all_said()) && failure_.empty()) {
      hear();
      all_left = true;
      for (int rank = 0; rank < size_; ++rank) {
        const Peer& peer = peers_[static_cast<std::size_t>(rank)];
        if (rank == rank_ || peer.left) {
          continue;
        }
        all_left = false;
        if (peer.heard < Clock::now() - timeout_) {
          const std::lock_guard lock(mutex_);
          failure_ = "rank " + std::to_string(rank) + " was silent";
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    MPI_Cancel(&incoming_request_);
    MPI_Wait(&incoming_request_, MPI_STATUS_IGNORE);
  }

  MPI_Comm comm_;
  int rank_;
  int size_;
  std::chrono::milliseconds timeout_;

  std::mutex mutex_;
  std::condition_variable changed_;   // there is work for the thread
  std::condition_variable finished_;  // there is news for the caller
  std::deque<std::shared_ptr<Operation>> queue_;
  std::vector<Peer> peers_;  // written by the thread alone
  int waiting_for_ = -1;
  bool stopping_ = false;
  bool ended_ = false;
  bool failure_is_news_ = false;
  std::string failure_;  // empty while there is none

  // The thread's own.
  std::list<std::shared_ptr<Operation>> active_;
  Control incoming_;
  MPI_Request incoming_request_ = MPI_REQUEST_NULL;
  std::list<SentControl> sent_;
  std::thread thread_;
};

class MpiTransfer final : public PendingTransfer {
 public:
  MpiTransfer(Progress& progress, std::shared_ptr<Operation> operation)
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
  Progress& progress_;
  std::shared_ptr<Operation> operation_;
  bool done_ = false;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(const MpiOptions& options) : library_(library()) {
    const MPI_Comm given = options.comm == nullptr ? MPI_COMM_WORLD : *static_cast<const MPI_Comm*>(options.comm);
    check(MPI_Comm_dup(given, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    progress_ = std::make_unique<Progress>(comm_, rank_, size_, options.communicator.timeout);
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
    // MPI_Isend takes its memory as const; one Operation serves both directions.
    return start(true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size());
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* /*stream*/) override {
    return start(false, from, channel, bytes.data(), bytes.size());
  }

 private:
  std::unique_ptr<PendingTransfer> start(bool sends, int peer, int channel, std::byte* data, std::size_t bytes) {
    auto operation = std::make_shared<Operation>();
    operation->sends = sends;
    operation->peer = peer;
    operation->channel = channel;
    operation->data = data;
    operation->bytes = bytes;
    progress_->add(operation);
    return std::make_unique<MpiTransfer>(*progress_, std::move(operation));
  }

  std::shared_ptr<Library> library_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::unique_ptr<Progress> progress_;
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
