// All MPI calls but the first and the last are made by one thread for each group, which also exchanges signs of life: a
// peer that sends none is the one to blame for a wait that takes too long, wherever in the ring that is noticed.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dist/blame.h"
#include "mpi/library.h"
#include "tessera/distributed.h"

namespace tessera::internal {

struct MpiOperation {
  bool sends = false;
  int peer = 0;
  int channel = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  // Large messages are several of MPI's, which count in int.
  std::vector<MPI_Request> requests;
  bool done = false;
  PendingTransfer::Clock::time_point finished;
};

// The thread that talks to MPI, and what it shares with the caller under one mutex.
class MpiProgress {
 public:
  MpiProgress(MPI_Comm comm, int rank, int size, std::chrono::milliseconds timeout);
  MpiProgress(const MpiProgress&) = delete;
  MpiProgress& operator=(const MpiProgress&) = delete;
  // Says goodbye. Returns whether MPI may be ended.
  bool stop();

  void add(const std::shared_ptr<MpiOperation>& operation);
  void wait(MpiOperation& operation);

  // Until the thread has let go of the operation's memory. MPI cannot take a send back, and the peer of a receive would wait
  // for ever: so this is the end of the group.
  void cancel(const MpiOperation& operation);

  void spread(const std::string& failure);
  std::optional<std::string> failure();

 private:
  using Clock = PendingTransfer::Clock;

  // A sign of life, or the end of it.
  struct Control {
    enum class Kind : std::int32_t { alive, goodbye, failure };
    Kind kind = Kind::alive;
    std::int32_t waiting_for = -1;
    std::array<char, 496> text{};
  };
  struct SentControl {
    Control control;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  Clock::duration interval() const;
  Clock::duration leaving_grace() const;

  void require_sound() const;
  void fail(const std::string& text);

  // Along those that wait for each other, to the first one that is not heard of or waits for nobody.
  int culprit() const;

  void loop();

  // What the caller wants, without keeping it from asking for more while MPI copies.
  struct Request {
    std::deque<std::shared_ptr<MpiOperation>> operations;
    int waiting_for = -1;
    bool stops = false;
    bool failed = false;
  };
  Request next_request();

  void post(const std::deque<std::shared_ptr<MpiOperation>>& operations);
  void test_active();
  bool test(MpiOperation& operation);
  void listen();
  void hear();
  void say(const Control& control);

  // The others may depend on MPI being called here for a moment more.
  void spread_failure();

  bool all_said();

  // Everybody's goodbye: nobody ends MPI before all have stopped to use it.
  void drain();

  MPI_Comm comm_;
  int rank_;
  int size_;
  std::chrono::milliseconds timeout_;

  std::mutex mutex_;
  std::condition_variable changed_;   // there is work for the thread
  std::condition_variable finished_;  // there is news for the caller
  std::deque<std::shared_ptr<MpiOperation>> queue_;
  std::vector<PeerSigns> peers_;  // written by the thread alone
  int waiting_for_ = -1;
  bool stopping_ = false;
  bool ended_ = false;
  bool failure_is_news_ = false;
  std::string failure_;  // empty while there is none

  // The thread's own.
  std::list<std::shared_ptr<MpiOperation>> active_;
  Control incoming_;
  MPI_Request incoming_request_ = MPI_REQUEST_NULL;
  std::list<SentControl> sent_;
  std::thread thread_;
};

}  // namespace tessera::internal
