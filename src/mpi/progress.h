// All MPI calls of a group but the first and the last are made by its thread.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "dist/progress_thread.h"
#include "mpi/library.h"

namespace tessera::internal {

class MpiProgress final : public ProgressThread {
 public:
  // Owns `comm`.
  MpiProgress(std::shared_ptr<MpiLibrary> library, MPI_Comm comm, int rank, int size,
              std::chrono::milliseconds timeout);
  // Says goodbye. After a failure MPI is not ended, which would wait for those that are lost.
  ~MpiProgress() override;

  void add(const std::shared_ptr<HostMessage>& message) override;

 private:
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

  // A message that MPI has.
  struct Active {
    std::shared_ptr<HostMessage> message;
    std::vector<MPI_Request> requests;  // large messages are several of MPI's, which count in int
  };

  void run() override;
  void announce() override { failure_is_news_ = true; }
  void wake() override { changed_.notify_all(); }

  // What the caller wants, without keeping it from asking for more while MPI copies.
  struct Request {
    std::deque<std::shared_ptr<HostMessage>> messages;
    int waiting_for = -1;
    bool stops = false;
    bool failed = false;
  };
  Request next_request();

  void post(const std::deque<std::shared_ptr<HostMessage>>& messages);
  void test_active();
  static bool test(Active& active);
  void listen();
  void hear();
  void say(const Control& control);

  // The others may depend on MPI being called here for a moment more.
  void spread_failure();

  bool all_said();

  // Everybody's goodbye: nobody ends MPI before all have stopped to use it.
  void drain();

  std::shared_ptr<MpiLibrary> library_;
  MPI_Comm comm_;
  std::condition_variable changed_;  // there is work for the thread
  std::deque<std::shared_ptr<HostMessage>> queue_;
  bool failure_is_news_ = false;

  // The thread's own.
  std::list<Active> active_;
  Control incoming_;
  MPI_Request incoming_request_ = MPI_REQUEST_NULL;
  std::list<SentControl> sent_;
};

}  // namespace tessera::internal
