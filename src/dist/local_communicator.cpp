// Ranks as threads of one process. A message is copied once, straight from the sender's memory to the receiver's, by
// whichever of the two comes second.
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>

#include "core/fail.h"
#include "tessera/communicator.h"

namespace tessera {

namespace {

// One end of a message. All fields but the memory are guarded by World::mutex.
struct End {
  enum class State : std::uint8_t { posted, copying, done };
  State state = State::posted;
  int peer = 0;
  const std::byte* source = nullptr;  // of a send
  std::byte* target = nullptr;        // of a receive
  std::size_t bytes = 0;
  PendingTransfer::Clock::time_point finished;
};

// The posted ends of one (from, to, channel), of which at most one list is not empty.
struct Lane {
  std::deque<End*> sends;
  std::deque<End*> receives;
};

struct World {
  World(int ranks, const CommunicatorOptions& options_)
      : options(options_),
        waiting_for(static_cast<std::size_t>(ranks), -1),
        left(static_cast<std::size_t>(ranks), false) {}

  const CommunicatorOptions options;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::tuple<int, int, int>, Lane> lanes;
  std::vector<int> waiting_for;  // for each rank, the peer whose message it waits for, or -1
  std::vector<bool> left;
  std::string failure;  // empty while there is none

  void fail(const std::string& text) {
    if (failure.empty()) {
      failure = text;
    }
    changed.notify_all();
  }
  void require_sound() const {
    if (!failure.empty()) {
      throw Error(ErrorCode::peer, failure);
    }
  }
  // The rank that holds up `rank`: the end of the chain of those that wait for each other.
  int culprit(int rank) const {
    int at = rank;
    for (std::size_t hops = 0; hops < waiting_for.size(); ++hops) {
      const int next = waiting_for[static_cast<std::size_t>(at)];
      if (next < 0) {
        break;
      }
      at = next;
    }
    return at == rank ? waiting_for[static_cast<std::size_t>(rank)] : at;
  }
};

class LocalTransfer final : public PendingTransfer {
 public:
  LocalTransfer(std::shared_ptr<World> world, int rank, std::deque<End*>& queue, const End& end)
      : world_(std::move(world)), rank_(rank), queue_(queue), end_(end) {}

  ~LocalTransfer() override {
    std::unique_lock lock(world_->mutex);
    if (end_.state == End::State::posted) {
      std::erase(queue_, &end_);
    }
    world_->changed.wait(lock, [&] { return end_.state != End::State::copying; });
  }

  End& end() { return end_; }

  void wait(void* /*stream*/) override {
    std::unique_lock lock(world_->mutex);
    int& waiting = world_->waiting_for[static_cast<std::size_t>(rank_)];
    const auto deadline = Clock::now() + world_->options.timeout;
    waiting = end_.peer;
    while (end_.state != End::State::done) {
      if (end_.state == End::State::posted && world_->left[static_cast<std::size_t>(end_.peer)]) {
        world_->fail("rank " + std::to_string(end_.peer) + " left before its work was done");
      }
      if (!world_->failure.empty()) {
        break;
      }
      const bool late = world_->changed.wait_until(lock, deadline) == std::cv_status::timeout;
      if (late && end_.state != End::State::done && world_->failure.empty()) {
        world_->fail("rank " + std::to_string(world_->culprit(rank_)) + " was silent for " +
                     internal::to_text(std::chrono::duration<double>(world_->options.timeout).count()) +
                     " s, as rank " + std::to_string(rank_) + " found");
      }
    }
    waiting = -1;
    if (end_.state != End::State::done) {
      world_->require_sound();
    }
  }

  Clock::time_point finished_at() const override { return end_.finished; }

 private:
  std::shared_ptr<World> world_;
  int rank_;
  std::deque<End*>& queue_;
  End end_;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<World> world, int rank) : world_(std::move(world)), rank_(rank) {}

  ~LocalCommunicator() override {
    const std::lock_guard lock(world_->mutex);
    world_->left[static_cast<std::size_t>(rank_)] = true;
    world_->changed.notify_all();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_->left.size()); }
  std::string name() const override { return "local"; }

 protected:
  void spread(const std::string& failure) noexcept override {
    const std::lock_guard lock(world_->mutex);
    world_->fail(failure);
  }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* /*stream*/) override {
    End end;
    end.peer = to;
    end.source = bytes.data();
    end.bytes = bytes.size();
    return start({rank_, to, channel}, end, true);
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* /*stream*/) override {
    End end;
    end.peer = from;
    end.target = bytes.data();
    end.bytes = bytes.size();
    return start({from, rank_, channel}, end, false);
  }

 private:
  std::unique_ptr<PendingTransfer> start(const std::tuple<int, int, int>& address, const End& end, bool sends) {
    std::unique_lock lock(world_->mutex);
    world_->require_sound();
    Lane& lane = world_->lanes[address];
    auto& own = sends ? lane.sends : lane.receives;
    auto& others = sends ? lane.receives : lane.sends;
    auto transfer = std::make_unique<LocalTransfer>(world_, rank_, own, end);
    if (others.empty()) {
      own.push_back(&transfer->end());
      return transfer;
    }
    End& other = *others.front();
    if (other.bytes != end.bytes) {
      world_->fail("rank " + std::to_string(std::get<0>(address)) + " sends " +
                   std::to_string(sends ? end.bytes : other.bytes) + " bytes, and rank " +
                   std::to_string(std::get<1>(address)) + " expects " +
                   std::to_string(sends ? other.bytes : end.bytes));
      lock.unlock();  // the handle locks when it goes
      transfer.reset();
      throw Error(ErrorCode::peer, world_->failure);
    }
    others.pop_front();
    End& mine = transfer->end();
    mine.state = other.state = End::State::copying;
    lock.unlock();
    if (mine.bytes > 0) {
      std::memcpy(sends ? other.target : mine.target, sends ? mine.source : other.source, mine.bytes);
    }
    lock.lock();
    mine.finished = other.finished = PendingTransfer::Clock::now();
    mine.state = other.state = End::State::done;
    world_->changed.notify_all();
    return transfer;
  }

  std::shared_ptr<World> world_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, const CommunicatorOptions& options) {
  if (ranks < 1) {
    internal::fail_argument("ranks", std::int64_t{ranks}, "1 or more");
  }
  if (options.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.timeout.count()}, "1 or more");
  }
  const auto world = std::make_shared<World>(ranks, options);
  std::vector<std::unique_ptr<Communicator>> all;
  all.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    all.push_back(std::make_unique<LocalCommunicator>(world, rank));
  }
  return all;
}

}  // namespace tessera
