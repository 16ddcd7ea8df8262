#include "mpi/progress.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/fail.h"

namespace tessera::internal {

namespace {

constexpr int kControlTag = Communicator::kChannels;

}  // namespace

MpiProgress::MpiProgress(std::shared_ptr<MpiLibrary> library, MPI_Comm comm, int rank, int size,
                         std::chrono::milliseconds timeout)
    : ProgressThread(rank, size, timeout, false), library_(std::move(library)), comm_(comm) {
  start();
}

MpiProgress::~MpiProgress() {
  stop();
  if (failure_.empty()) {
    MPI_Comm_free(&comm_);
  } else {
    library_->abandon();
  }
}

void MpiProgress::add(const std::shared_ptr<HostMessage>& message) {
  const std::lock_guard lock(mutex_);
  require_sound();
  queue_.push_back(message);
  wake();
}

void MpiProgress::run() {
  listen();
  Clock::time_point next_sign = Clock::now();
  for (;;) {
    const Request request = next_request();
    if (request.failed) {
      spread_failure();
      return;
    }
    post(request.messages);
    test_active();
    hear();
    if (Clock::now() >= next_sign) {
      say({Control::Kind::alive, request.waiting_for, {}});
      next_sign = Clock::now() + interval();
    }
    if (request.stops && active_.empty()) {
      say({Control::Kind::goodbye, -1, {}});
      drain();
      return;
    }
  }
}

MpiProgress::Request MpiProgress::next_request() {
  std::unique_lock lock(mutex_);
  const bool quiet = queue_.empty() && active_.empty();
  const auto pause = quiet               ? std::chrono::microseconds(2000)
                     : waiting_for_ >= 0 ? std::chrono::microseconds(20)
                                         : std::chrono::microseconds(200);
  changed_.wait_for(lock, pause, [&] { return !queue_.empty() || stopping_ || failure_is_news_; });
  return {std::exchange(queue_, {}), waiting_for_, stopping_, !failure_.empty()};
}

void MpiProgress::post(const std::deque<std::shared_ptr<HostMessage>>& messages) {
  constexpr std::size_t kMost = std::size_t{1} << 30;
  for (const auto& message : messages) {
    Active& active = active_.emplace_back(Active{message, {}});
    for (std::size_t begin = 0; begin == 0 || begin < message->bytes; begin += kMost) {
      const int count = static_cast<int>(std::min(kMost, message->bytes - begin));
      MPI_Request& request = active.requests.emplace_back(MPI_REQUEST_NULL);
      check_mpi(
          message->sends
              ? MPI_Isend(message->data + begin, count, MPI_BYTE, message->peer, message->channel, comm_, &request)
              : MPI_Irecv(message->data + begin, count, MPI_BYTE, message->peer, message->channel, comm_, &request),
          message->sends ? "MPI_Isend" : "MPI_Irecv");
    }
  }
}

void MpiProgress::test_active() {
  for (auto at = active_.begin(); at != active_.end();) {
    if (!test(*at)) {
      ++at;
      continue;
    }
    const std::lock_guard lock(mutex_);
    at->message->finished = Clock::now();
    at->message->done = true;
    news_.notify_all();
    at = active_.erase(at);
  }
}

bool MpiProgress::test(Active& active) {
  int all = 0;
  const int status =
      MPI_Testall(static_cast<int>(active.requests.size()), active.requests.data(), &all, MPI_STATUSES_IGNORE);
  if (status != MPI_SUCCESS) {
    throw Error(ErrorCode::peer, "the transfer with rank " + std::to_string(active.message->peer) + " of " +
                                     std::to_string(active.message->bytes) + " bytes failed in MPI");
  }
  return all != 0;
}

void MpiProgress::listen() {
  check_mpi(MPI_Irecv(&incoming_, sizeof(Control), MPI_BYTE, MPI_ANY_SOURCE, kControlTag, comm_, &incoming_request_),
            "MPI_Irecv");
}

void MpiProgress::hear() {
  for (;;) {
    int arrived = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&incoming_request_, &arrived, &status), "MPI_Test");
    if (arrived == 0) {
      return;
    }
    const std::lock_guard lock(mutex_);
    Signs& peer = signs_[static_cast<std::size_t>(status.MPI_SOURCE)];
    peer.heard = Clock::now();
    peer.waiting_for = incoming_.waiting_for;
    if (incoming_.kind == Control::Kind::goodbye) {
      peer.left = true;
    } else if (incoming_.kind == Control::Kind::failure && failure_.empty()) {
      failure_ = incoming_.text.data();
    }
    news_.notify_all();
    listen();
  }
}

void MpiProgress::say(const Control& control) {
  sent_.remove_if([](SentControl& sent) {
    int done = 0;
    return MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
  });
  for (int peer = 0; peer < size(); ++peer) {
    // Those that have left still wait for the goodbye of the others.
    const bool left = signs_[static_cast<std::size_t>(peer)].left && control.kind != Control::Kind::goodbye;
    if (peer == rank() || left) {
      continue;
    }
    SentControl& sent = sent_.emplace_back(SentControl{control, MPI_REQUEST_NULL});
    MPI_Isend(&sent.control, sizeof(Control), MPI_BYTE, peer, kControlTag, comm_, &sent.request);
  }
}

void MpiProgress::spread_failure() {
  Control control{Control::Kind::failure, -1, {}};
  const std::size_t length = std::min(failure_.size(), control.text.size() - 1);
  std::memcpy(control.text.data(), failure_.data(), length);
  if (failure_is_news_) {
    say(control);
  }
  const auto until = Clock::now() + farewell();
  while (Clock::now() < until && !all_said()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool MpiProgress::all_said() {
  return std::all_of(sent_.begin(), sent_.end(), [](SentControl& sent) {
    int done = 0;
    return MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0;
  });
}

void MpiProgress::drain() {
  bool all_left = false;
  while (!(all_left && all_said()) && failure_.empty()) {
    hear();
    all_left = true;
    for (int rank = 0; rank < size(); ++rank) {
      const Signs& peer = signs_[static_cast<std::size_t>(rank)];
      if (rank == MpiProgress::rank() || peer.left) {
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

}  // namespace tessera::internal
