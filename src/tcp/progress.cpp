#include "tcp/progress.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/fail.h"

namespace tessera::internal {

TcpProgress::TcpProgress(std::vector<Socket> sockets, int rank, std::chrono::milliseconds timeout)
    : ProgressThread(rank, static_cast<int>(sockets.size()), timeout, true),
      peers_(sockets.size()),
      wake_(::eventfd(0, EFD_CLOEXEC)) {
  for (std::size_t peer = 0; peer < sockets.size(); ++peer) {
    peers_[peer].socket = std::move(sockets[peer]);
  }
  start();
}

TcpProgress::~TcpProgress() {
  stop();
  ::close(wake_);
}

void TcpProgress::add(const std::shared_ptr<HostMessage>& message) {
  const std::lock_guard lock(mutex_);
  require_sound();
  Peer& peer = peers_[static_cast<std::size_t>(message->peer)];
  if (message->sends) {
    peer.outgoing.push_back({{Frame::Kind::data, message->channel, message->bytes}, message, {}, 0});
    wake();
    return;
  }
  Lane& lane = peer.lanes[static_cast<std::size_t>(message->channel)];
  if (lane.early.empty()) {
    lane.receives.push_back(message);
    return;
  }
  const std::vector<std::byte> early = std::move(lane.early.front());
  lane.early.pop_front();
  deliver(*message, early);
  require_sound();
}

void TcpProgress::announce() {
  for (Peer& peer : peers_) {  // what has not begun does not go out before the news
    std::erase_if(peer.outgoing, [](const Outgoing& frame) { return frame.sent == 0; });
  }
  say({Frame::Kind::failure, 0, failure_.size()}, failure_);
}

void TcpProgress::leave() { say({Frame::Kind::goodbye, 0, 0}); }

void TcpProgress::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_, &one, sizeof one);
}

void TcpProgress::fail_size(const HostMessage& message, std::size_t sent) {
  fail("rank " + std::to_string(message.peer) + " sends " + std::to_string(sent) + " bytes, and rank " +
       std::to_string(rank()) + " expects " + std::to_string(message.bytes));
}

void TcpProgress::deliver(HostMessage& message, const std::vector<std::byte>& early) {
  if (early.size() != message.bytes) {
    fail_size(message, early.size());
    return;
  }
  std::copy(early.begin(), early.end(), message.data);
  finish(message);
}

void TcpProgress::finish(HostMessage& message) {
  message.finished = Clock::now();
  message.done = true;
  news_.notify_all();
}

void TcpProgress::say(const Frame& frame, const std::string& text) {
  for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
    if (peers_[peer].socket.handle() >= 0 && !peers_[peer].gone) {
      peers_[peer].outgoing.push_back({frame, nullptr, text, 0});
    }
  }
}

bool TcpProgress::all_said() const {
  for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
    if (!peers_[peer].gone && !peers_[peer].outgoing.empty()) {
      return false;
    }
  }
  return true;
}

bool TcpProgress::all_gone() const {
  return std::all_of(peers_.begin(), peers_.end(),
                     [](const Peer& peer) { return peer.socket.handle() < 0 || peer.gone; });
}

bool TcpProgress::all_left() const {
  for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
    if (peers_[peer].socket.handle() >= 0 && !signs_[peer].left) {
      return false;
    }
  }
  return true;
}

void TcpProgress::run() {
  auto next_sign = Clock::now();
  std::optional<Clock::time_point> until;  // what is said by then is said
  for (;;) {
    std::vector<pollfd> waiting{{wake_, POLLIN, 0}};
    std::vector<std::size_t> of;
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty() && !until) {
        until = Clock::now() + farewell();
      }
      const bool over = !failure_.empty() ? all_said() || Clock::now() > *until
                                          : stopping_ && all_said() && (all_left() || leaves_late());
      if (over && !ended_) {
        end();
        for (Peer& peer : peers_) {
          peer.outgoing.clear();
          ::shutdown(peer.socket.handle(), SHUT_WR);
        }
      }
      // A socket that closes with something unread takes back what it has sent: after a failure all read on to the end.
      if (ended_ && (failure_.empty() || all_gone() || Clock::now() > *until)) {
        return;
      }
      if (Clock::now() >= next_sign && failure_.empty() && !stopping_) {
        say({Frame::Kind::alive, waiting_for_, 0});
        next_sign = Clock::now() + interval();
      }
      for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
        // One that has said goodbye is still told what there is to tell, goodbye for one.
        const bool told = !peers_[peer].outgoing.empty();
        const bool heard = !signs_[peer].left || !failure_.empty();
        if (peers_[peer].socket.handle() >= 0 && !peers_[peer].gone && (heard || told)) {
          const int events = (heard ? POLLIN : 0) | (told ? POLLOUT : 0);
          waiting.push_back({peers_[peer].socket.handle(), static_cast<short>(events), 0});
          of.push_back(peer);
        }
      }
    }
    const auto pause = std::chrono::duration_cast<std::chrono::milliseconds>(interval()).count();
    ::poll(waiting.data(), waiting.size(), static_cast<int>(std::min<std::int64_t>(pause, stopping_pause())));
    const std::lock_guard lock(mutex_);
    if ((waiting[0].revents & POLLIN) != 0) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(wake_, &count, sizeof count);
    }
    for (std::size_t n = 0; n < of.size(); ++n) {
      if ((waiting[n + 1].revents & POLLOUT) != 0) {
        write_to(of[n]);
      }
      if ((waiting[n + 1].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        read_from(of[n]);
      }
    }
  }
}

std::int64_t TcpProgress::stopping_pause() {
  const std::lock_guard lock(mutex_);
  return stopping_ || !failure_.empty() ? 10 : 1000;
}

bool TcpProgress::leaves_late() {
  stopped_at_ = stopped_at_.value_or(Clock::now());
  return Clock::now() - *stopped_at_ > timeout_;
}

void TcpProgress::lost(std::size_t peer) {
  const bool said_goodbye = signs_[peer].left;
  signs_[peer].left = true;
  peers_[peer].gone = true;
  if (!said_goodbye) {
    fail("rank " + std::to_string(peer) + " left before its work was done");
  }
}

void TcpProgress::write_to(std::size_t index) {
  Peer& peer = peers_[index];
  while (!peer.outgoing.empty()) {
    Outgoing& out = peer.outgoing.front();
    const std::size_t all = sizeof(Frame) + out.frame.bytes;
    while (out.sent < all) {
      const bool header = out.sent < sizeof(Frame);
      const std::byte* const body =
          out.message ? out.message->data : reinterpret_cast<const std::byte*>(out.text.data());
      const std::byte* const from =
          header ? reinterpret_cast<const std::byte*>(&out.frame) + out.sent : body + (out.sent - sizeof(Frame));
      const std::size_t most = header ? sizeof(Frame) - out.sent : all - out.sent;
      const auto sent = ::send(peer.socket.handle(), from, most, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
          peer.outgoing.clear();  // why it has gone may still be there to read
          peer.gone = signs_[index].left;
        }
        return;
      }
      out.sent += static_cast<std::size_t>(sent);
    }
    if (out.message) {
      finish(*out.message);
    }
    peer.outgoing.pop_front();
  }
}

void TcpProgress::discard_from(std::size_t index) {
  std::array<std::byte, 65536> unread;
  for (;;) {
    const auto got = ::recv(peers_[index].socket.handle(), unread.data(), unread.size(), MSG_DONTWAIT);
    if (got <= 0) {
      peers_[index].gone = got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
      return;
    }
  }
}

void TcpProgress::read_from(std::size_t index) {
  if (!failure_.empty()) {
    discard_from(index);
    return;
  }
  Peer& peer = peers_[index];
  while (failure_.empty() && !signs_[index].left) {
    Incoming& in = peer.incoming;
    const bool header = in.got < sizeof(Frame);
    std::byte* const to =
        header ? reinterpret_cast<std::byte*>(&in.frame) + in.got : in.target + (in.got - sizeof(Frame));
    const std::size_t most = header ? sizeof(Frame) - in.got : sizeof(Frame) + in.frame.bytes - in.got;
    if (most > 0) {
      const auto got = ::recv(peer.socket.handle(), to, most, MSG_DONTWAIT);
      if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
          lost(index);
        }
        return;
      }
      in.got += static_cast<std::size_t>(got);
      signs_[index].heard = Clock::now();
    }
    if (header && in.got == sizeof(Frame)) {
      begin_body(peer);
    }
    if (in.got == sizeof(Frame) + in.frame.bytes && failure_.empty()) {
      end_body(index);
    }
  }
}

void TcpProgress::begin_body(Peer& peer) {
  Incoming& in = peer.incoming;
  if (in.frame.kind == Frame::Kind::data) {
    Lane& lane = peer.lanes[static_cast<std::size_t>(in.frame.number) % Communicator::kChannels];
    if (!lane.receives.empty()) {
      in.message = lane.receives.front();
      lane.receives.pop_front();
      if (in.message->bytes != in.frame.bytes) {
        fail_size(*in.message, in.frame.bytes);
        return;
      }
      in.target = in.message->data;
      return;
    }
  }
  in.early.resize(in.frame.bytes);
  in.target = in.early.data();
}

void TcpProgress::end_body(std::size_t index) {
  Incoming in = std::exchange(peers_[index].incoming, {});
  switch (in.frame.kind) {
    case Frame::Kind::data: {
      Lane& lane = peers_[index].lanes[static_cast<std::size_t>(in.frame.number) % Communicator::kChannels];
      if (in.message) {
        finish(*in.message);
      } else if (lane.receives.empty()) {
        lane.early.push_back(std::move(in.early));
      } else {  // somebody has asked while it came
        const std::shared_ptr<HostMessage> message = std::move(lane.receives.front());
        lane.receives.pop_front();
        deliver(*message, in.early);
      }
      break;
    }
    case Frame::Kind::alive:
      signs_[index].waiting_for = in.frame.number;
      break;
    case Frame::Kind::goodbye:
      signs_[index].left = true;
      break;
    case Frame::Kind::failure:
      fail({reinterpret_cast<const char*>(in.early.data()), in.early.size()});
      break;
  }
  news_.notify_all();
}

}  // namespace tessera::internal
