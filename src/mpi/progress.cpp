#include "mpi/progress.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/fail.h"

namespace tessera::internal {

namespace {

constexpr int kControlTag = Communicator::kChannels;

}  // namespace

MpiProgress::MpiProgress(MPI_Comm comm, int rank, int size, std::chrono::milliseconds timeout)
    : comm_(comm), rank_(rank), size_(size), timeout_(timeout), peers_(static_cast<std::size_t>(size)) {
  for (PeerSigns& peer : peers_) {
    peer.heard = Clock::now();
  }
  thread_ = std::thread([this] { loop(); });
}

bool MpiProgress::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  return failure_.empty();
}

void MpiProgress::add(const std::shared_ptr<MpiOperation>& operation) {
  const std::lock_guard lock(mutex_);
  require_sound();
  queue_.push_back(operation);
  changed_.notify_all();
}

void MpiProgress::wait(MpiOperation& operation) {
  std::unique_lock lock(mutex_);
  const auto deadline = Clock::now() + timeout_;
  waiting_for_ = operation.peer;
  while (!operation.done && failure_.empty()) {
    if (peers_[static_cast<std::size_t>(operation.peer)].left) {
      // What it sent before it left may still arrive.
      if (finished_.wait_for(lock, leaving_grace()) == std::cv_status::timeout && !operation.done && failure_.empty()) {
        fail("rank " + std::to_string(operation.peer) + " left before its work was done");
      }
      continue;
    }
    if (finished_.wait_until(lock, deadline) == std::cv_status::timeout && !operation.done && failure_.empty()) {
      fail("rank " + std::to_string(culprit()) + " was silent for " +
           to_text(std::chrono::duration<double>(timeout_).count()) + " s, as rank " + std::to_string(rank_) +
           " found");
    }
  }
  waiting_for_ = -1;
  if (!operation.done) {
    require_sound();
  }
}

void MpiProgress::cancel(const MpiOperation& operation) {
  std::unique_lock lock(mutex_);
  if (!operation.done) {
    fail("rank " + std::to_string(rank_) + " failed: it took a transfer with rank " + std::to_string(operation.peer) +
         " back");
  }
  finished_.wait(lock, [&] { return operation.done || ended_; });
}

void MpiProgress::spread(const std::string& failure) {
  const std::lock_guard lock(mutex_);
  fail(failure);
}

std::optional<std::string> MpiProgress::failure() {
  const std::lock_guard lock(mutex_);
  return failure_.empty() ? std::nullopt : std::optional(failure_);
}

MpiProgress::Clock::duration MpiProgress::interval() const {
  return std::clamp<Clock::duration>(timeout_ / 16, std::chrono::milliseconds(5), std::chrono::seconds(1));
}

MpiProgress::Clock::duration MpiProgress::leaving_grace() const {
  return std::max<Clock::duration>(interval(), std::chrono::milliseconds(100));
}

void MpiProgress::require_sound() const {
  if (!failure_.empty()) {
    throw Error(ErrorCode::peer, failure_);
  }
}

void MpiProgress::fail(const std::string& text) {
  if (failure_.empty()) {
    failure_ = text;
    failure_is_news_ = true;
  }
  finished_.notify_all();
  changed_.notify_all();
}

int MpiProgress::culprit() const {
  const auto silent_since = Clock::now() - std::max<Clock::duration>(timeout_ / 2, 4 * interval());
  return internal::culprit(peers_, rank_, waiting_for_, silent_since);
}

void MpiProgress::loop() {
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

MpiProgress::Request MpiProgress::next_request() {
  std::unique_lock lock(mutex_);
  const bool quiet = queue_.empty() && active_.empty();
  const auto pause = quiet               ? std::chrono::microseconds(2000)
                     : waiting_for_ >= 0 ? std::chrono::microseconds(20)
                                         : std::chrono::microseconds(200);
  changed_.wait_for(lock, pause, [&] { return !queue_.empty() || stopping_ || failure_is_news_; });
  return {std::exchange(queue_, {}), waiting_for_, stopping_, !failure_.empty()};
}

void MpiProgress::post(const std::deque<std::shared_ptr<MpiOperation>>& operations) {
  constexpr std::size_t kMost = std::size_t{1} << 30;
  for (const auto& operation : operations) {
    for (std::size_t begin = 0; begin == 0 || begin < operation->bytes; begin += kMost) {
      const int count = static_cast<int>(std::min(kMost, operation->bytes - begin));
      MPI_Request& request = operation->requests.emplace_back(MPI_REQUEST_NULL);
      check_mpi(operation->sends ? MPI_Isend(operation->data + begin, count, MPI_BYTE, operation->peer,
                                             operation->channel, comm_, &request)
                                 : MPI_Irecv(operation->data + begin, count, MPI_BYTE, operation->peer,
                                             operation->channel, comm_, &request),
                operation->sends ? "MPI_Isend" : "MPI_Irecv");
    }
    active_.push_back(operation);
  }
}

void MpiProgress::test_active() {
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

bool MpiProgress::test(MpiOperation& operation) {
  int all = 0;
  const int status =
      MPI_Testall(static_cast<int>(operation.requests.size()), operation.requests.data(), &all, MPI_STATUSES_IGNORE);
  if (status != MPI_SUCCESS) {
    throw Error(ErrorCode::peer, "the transfer with rank " + std::to_string(operation.peer) + " of " +
                                     std::to_string(operation.bytes) + " bytes failed in MPI");
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
    PeerSigns& peer = peers_[static_cast<std::size_t>(status.MPI_SOURCE)];
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

void MpiProgress::say(const Control& control) {
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

void MpiProgress::spread_failure() {
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
    for (int rank = 0; rank < size_; ++rank) {
      const PeerSigns& peer = peers_[static_cast<std::size_t>(rank)];
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

}  // namespace tessera::internal
