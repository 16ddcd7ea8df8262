#include "dist/progress_thread.h"

#include <algorithm>
#include <utility>

#include "core/fail.h"

namespace tessera::internal {

namespace {

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

class HostTransfer final : public PendingTransfer {
 public:
  HostTransfer(ProgressThread& progress, std::shared_ptr<HostMessage> message)
      : progress_(progress), message_(std::move(message)) {}
  ~HostTransfer() override {
    if (!awaited_) {
      progress_.cancel(*message_);
    }
  }
  void wait(void* /*stream*/) override {
    if (!awaited_) {
      progress_.wait(*message_);
      awaited_ = true;
    }
  }
  Clock::time_point finished_at() const override { return message_->finished; }

 private:
  ProgressThread& progress_;
  std::shared_ptr<HostMessage> message_;
  bool awaited_ = false;
};

std::unique_ptr<PendingTransfer> start_message(ProgressThread& progress, const HostMessage& message) {
  auto shared = std::make_shared<HostMessage>(message);
  progress.add(shared);
  return std::make_unique<HostTransfer>(progress, std::move(shared));
}

}  // namespace

ProgressThread::ProgressThread(int rank, int size, std::chrono::milliseconds timeout, bool ordered)
    : timeout_(timeout), signs_(static_cast<std::size_t>(size)), rank_(rank), ordered_(ordered) {
  for (Signs& peer : signs_) {
    peer.heard = Clock::now();
  }
}

void ProgressThread::start() {
  thread_ = std::thread([this] {
    try {
      run();
    } catch (const Error& error) {
      const std::lock_guard lock(mutex_);
      fail(name_of(rank_) + " failed: " + error.what());
    }
    const std::lock_guard lock(mutex_);
    end();
  });
}

void ProgressThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    leave();
    wake();
  }
  thread_.join();
}

void ProgressThread::wait(HostMessage& message) {
  std::unique_lock lock(mutex_);
  const auto deadline = Clock::now() + timeout_;
  const auto nothing_until = [&](Clock::time_point time) {
    return news_.wait_until(lock, time) == std::cv_status::timeout && !message.done && failure_.empty();
  };
  waiting_for_ = message.peer;
  while (!message.done && failure_.empty()) {
    if (signs_[static_cast<std::size_t>(message.peer)].left) {
      if (ordered_ || nothing_until(Clock::now() + farewell())) {
        fail(name_of(message.peer) + " left before its work was done");
      }
    } else if (nothing_until(deadline)) {
      fail(silence());
    }
  }
  waiting_for_ = -1;
  if (!message.done) {
    require_sound();
  }
}

void ProgressThread::cancel(const HostMessage& message) {
  std::unique_lock lock(mutex_);
  if (!message.done) {
    fail(name_of(rank_) + " failed: it took a transfer with " + name_of(message.peer) + " back");
  }
  news_.wait(lock, [&] { return message.done || ended_; });
}

void ProgressThread::spread(const std::string& failure) {
  const std::lock_guard lock(mutex_);
  fail(failure);
}

std::optional<std::string> ProgressThread::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_.empty() ? std::nullopt : std::optional(failure_);
}

ProgressThread::Clock::duration ProgressThread::interval() const {
  return std::clamp<Clock::duration>(timeout_ / 16, std::chrono::milliseconds(5), std::chrono::seconds(1));
}

ProgressThread::Clock::duration ProgressThread::farewell() const {
  return std::max<Clock::duration>(interval(), std::chrono::milliseconds(200));
}

void ProgressThread::require_sound() const {
  if (!failure_.empty()) {
    throw Error(ErrorCode::peer, failure_);
  }
}

void ProgressThread::fail(const std::string& text) {
  if (failure_.empty()) {
    failure_ = text;
    announce();
  }
  news_.notify_all();
  wake();
}

void ProgressThread::end() {
  ended_ = true;
  news_.notify_all();
}

int ProgressThread::culprit() const {
  const auto silent_since = Clock::now() - std::max<Clock::duration>(timeout_ / 2, 4 * interval());
  int at = waiting_for_;
  for (std::size_t hops = 0; hops < signs_.size(); ++hops) {
    const Signs& peer = signs_[static_cast<std::size_t>(at)];
    if (peer.heard < silent_since || peer.waiting_for < 0 || peer.waiting_for == rank_) {
      break;
    }
    at = peer.waiting_for;
  }
  return at;
}

std::string ProgressThread::silence() const {
  const double seconds = std::chrono::duration<double>(timeout_).count();
  return name_of(culprit()) + " was silent for " + to_text(seconds) + " s, as " + name_of(rank_) + " found";
}

ProgressCommunicator::ProgressCommunicator(std::string name, std::unique_ptr<ProgressThread> progress)
    : name_(std::move(name)), progress_(std::move(progress)) {}

std::unique_ptr<PendingTransfer> ProgressCommunicator::start_send(int to, int channel, std::span<const std::byte> bytes,
                                                                  void* /*stream*/) {
  // One message serves both directions.
  return start_message(*progress_, {true, to, channel, const_cast<std::byte*>(bytes.data()), bytes.size()});
}

std::unique_ptr<PendingTransfer> ProgressCommunicator::start_receive(int from, int channel, std::span<std::byte> bytes,
                                                                     void* /*stream*/) {
  return start_message(*progress_, {false, from, channel, bytes.data(), bytes.size()});
}

}  // namespace tessera::internal
