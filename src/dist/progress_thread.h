// What groups of processes have in common whose messages, in host memory, one thread moves: that thread exchanges signs of
// life too, so that a peer which sends none is the one to blame for a wait that takes too long, wherever that is noticed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tessera/communicator.h"

namespace tessera::internal {

// One end of a message. `done` and `finished` are the thread's.
struct HostMessage {
  bool sends = false;
  int peer = 0;
  int channel = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool done = false;
  PendingTransfer::Clock::time_point finished{};
};

class ProgressThread {
 public:
  using Clock = PendingTransfer::Clock;

  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;
  virtual ~ProgressThread() = default;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(signs_.size()); }

  // Throws Error(peer) when the group has failed.
  virtual void add(const std::shared_ptr<HostMessage>& message) = 0;
  // Throws Error(peer) that names the rank which left, failed or was silent.
  void wait(HostMessage& message);
  // Until the thread has let go of the message's memory. What is half sent cannot be taken back, and the peer of a receive
  // would wait for ever: so this is the end of the group.
  void cancel(const HostMessage& message);
  void spread(const std::string& failure);
  std::optional<std::string> failure() const;

 protected:
  // What a rank last gave to know.
  struct Signs {
    Clock::time_point heard;
    int waiting_for = -1;  // the peer that it waits for
    bool left = false;
  };

  // `ordered`: what a rank has sent arrives before the news that it leaves.
  ProgressThread(int rank, int size, std::chrono::milliseconds timeout, bool ordered);

  // For the constructor and the destructor of what can be run.
  void start();
  void stop();

  // The thread, until stop() or a failure. An Error that it throws is a failure of this rank.
  virtual void run() = 0;
  // The others are to hear of failure_. With mutex_ held, as all that follows.
  virtual void announce() = 0;
  // They are to hear that this rank leaves.
  virtual void leave() {}
  // There is something to do for the thread.
  virtual void wake() = 0;

  // Between two signs of life.
  Clock::duration interval() const;
  // In which last words arrive.
  Clock::duration farewell() const;
  void require_sound() const;
  void fail(const std::string& text);
  // No memory of a message is touched from here on.
  void end();

  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;
  std::condition_variable news_;  // for those who wait
  std::vector<Signs> signs_;      // of each rank; written by the thread alone
  int waiting_for_ = -1;          // of this rank
  bool stopping_ = false;
  bool ended_ = false;
  std::string failure_;  // empty while there is none

 private:
  // From the rank that this one waits for along those that wait for each other, to the first that was not heard of lately
  // or waits for nobody.
  int culprit() const;
  std::string silence() const;

  const int rank_;
  const bool ordered_;
  std::thread thread_;
};

// A group by such a thread.
class ProgressCommunicator final : public Communicator {
 public:
  ProgressCommunicator(std::string name, std::unique_ptr<ProgressThread> progress);

  int rank() const override { return progress_->rank(); }
  int size() const override { return progress_->size(); }
  std::string name() const override { return name_; }
  std::optional<std::string> failure() const override { return progress_->failure(); }

 protected:
  void spread(const std::string& failure) noexcept override { progress_->spread(failure); }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override;
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override;

 private:
  std::string name_;
  std::unique_ptr<ProgressThread> progress_;
};

}  // namespace tessera::internal
