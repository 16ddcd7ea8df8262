// The thread that reads and writes all sockets of a group, which never block it, and sends signs of life.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dist/blame.h"
#include "tcp/meeting.h"
#include "tessera/communicator.h"

namespace tessera::internal {

// One end of a message.
struct TcpOperation {
  bool sends = false;
  int peer = 0;
  int channel = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool done = false;
  PendingTransfer::Clock::time_point finished;
};

class TcpProgress {
 public:
  TcpProgress(std::vector<Socket> sockets, int rank, std::chrono::milliseconds timeout);
  TcpProgress(const TcpProgress&) = delete;
  TcpProgress& operator=(const TcpProgress&) = delete;
  ~TcpProgress();

  int size() const { return static_cast<int>(peers_.size()); }

  // Throws Error(peer) when the group has failed.
  void add(const std::shared_ptr<TcpOperation>& operation);
  // Throws Error(peer) that names the rank which left, failed or was silent.
  void wait(TcpOperation& operation);
  // Until the thread has let go of the operation's memory. A message that is half sent cannot be taken back: so this is the end
  // of the group.
  void cancel(const TcpOperation& operation);
  void spread(const std::string& failure);
  std::optional<std::string> failure();

 private:
  using Clock = PendingTransfer::Clock;
  struct Frame {
    enum class Kind : std::int32_t { data, alive, goodbye, failure };
    Kind kind = Kind::data;
    std::int32_t number = 0;  // the channel of data; of a sign of life whom the sender waits for
    std::uint64_t bytes = 0;  // that follow
  };

  // A frame on its way out.
  struct Outgoing {
    Frame frame;
    std::shared_ptr<TcpOperation> operation;  // whose data follow, or
    std::string text;                         // what follows instead
    std::size_t sent = 0;                     // of all bytes
  };

  // The frame that is being read.
  struct Incoming {
    Frame frame;
    std::size_t got = 0;  // of all bytes
    std::byte* target = nullptr;
    std::shared_ptr<TcpOperation> operation;
    std::vector<std::byte> early;  // where nobody has asked yet
  };

  struct Lane {
    std::deque<std::shared_ptr<TcpOperation>> receives;
    std::deque<std::vector<std::byte>> early;
  };

  struct Peer {
    Socket socket;
    std::deque<Outgoing> outgoing;
    Incoming incoming;
    std::array<Lane, Communicator::kChannels> lanes;
    bool gone = false;  // nothing can be read or written any more
  };

  Clock::duration interval() const;
  int culprit() const;
  void require_sound() const;
  void wake() const;

  // With the mutex held, but for loop() and stopping_pause().
  void fail(const std::string& text);
  void fail_size(const TcpOperation& operation, std::size_t sent);
  void deliver(TcpOperation& operation, const std::vector<std::byte>& early);
  void finish(TcpOperation& operation);
  void say(const Frame& frame, const std::string& text = {});

  bool all_said() const;
  bool all_left() const;
  bool all_gone() const;
  bool leaves_late();

  void loop();
  std::int64_t stopping_pause();

  void lost(std::size_t peer);
  void write_to(std::size_t index);
  void read_from(std::size_t index);
  void discard_from(std::size_t index);
  void begin_body(Peer& peer);
  void end_body(std::size_t index);

  int rank_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable news_;
  std::vector<Peer> peers_;
  std::vector<PeerSigns> signs_;
  int wake_;
  int waiting_for_ = -1;
  bool stopping_ = false;
  bool ended_ = false;
  std::optional<Clock::time_point> stopped_at_;
  std::string failure_;  // empty while there is none
  std::thread thread_;
};

}  // namespace tessera::internal
