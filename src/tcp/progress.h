// The thread that reads and writes all sockets of a group, which never block it.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "dist/progress_thread.h"
#include "tcp/meeting.h"

namespace tessera::internal {

class TcpProgress final : public ProgressThread {
 public:
  TcpProgress(std::vector<Socket> sockets, int rank, std::chrono::milliseconds timeout);
  ~TcpProgress() override;

  void add(const std::shared_ptr<HostMessage>& message) override;

 private:
  struct Frame {
    enum class Kind : std::int32_t { data, alive, goodbye, failure };
    Kind kind = Kind::data;
    std::int32_t number = 0;  // the channel of data; of a sign of life whom the sender waits for
    std::uint64_t bytes = 0;  // that follow
  };

  // A frame on its way out.
  struct Outgoing {
    Frame frame;
    std::shared_ptr<HostMessage> message;  // whose data follow, or
    std::string text;                      // what follows instead
    std::size_t sent = 0;                  // of all bytes
  };

  // The frame that is being read.
  struct Incoming {
    Frame frame;
    std::size_t got = 0;  // of all bytes
    std::byte* target = nullptr;
    std::shared_ptr<HostMessage> message;
    std::vector<std::byte> early;  // where nobody has asked yet
  };

  struct Lane {
    std::deque<std::shared_ptr<HostMessage>> receives;
    std::deque<std::vector<std::byte>> early;
  };

  struct Peer {
    Socket socket;
    std::deque<Outgoing> outgoing;
    Incoming incoming;
    std::array<Lane, Communicator::kChannels> lanes;
    bool gone = false;  // nothing can be read or written any more
  };

  void run() override;
  void announce() override;
  void leave() override;
  void wake() override;

  // With the mutex held, but for stopping_pause().
  void fail_size(const HostMessage& message, std::size_t sent);
  void deliver(HostMessage& message, const std::vector<std::byte>& early);
  void finish(HostMessage& message);
  void say(const Frame& frame, const std::string& text = {});

  bool all_said() const;
  bool all_left() const;
  bool all_gone() const;
  bool leaves_late();

  std::int64_t stopping_pause();

  void lost(std::size_t peer);
  void write_to(std::size_t index);
  void read_from(std::size_t index);
  void discard_from(std::size_t index);
  void begin_body(Peer& peer);
  void end_body(std::size_t index);

  std::vector<Peer> peers_;
  int wake_;
  std::optional<Clock::time_point> stopped_at_;
};

}  // namespace tessera::internal
