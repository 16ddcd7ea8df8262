// Ranks as threads of one process. A message is copied once, straight from the sender's memory to the receiver's, by
// whichever of the two comes second. Between devices that one puts the copy into a stream of the receiver's device, behind
// what both ranks' streams hold: no host waits for a device.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/stream.h"
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
  // Between devices: when the memory may be used, and the copy.
  std::shared_ptr<internal::DeviceEvent> ready;
  std::shared_ptr<internal::DeviceEvent> started;
  std::shared_ptr<internal::DeviceEvent> copied;
};

// The posted ends of one (from, to, channel), of which at most one list is not empty.
struct Lane {
  std::deque<End*> sends;
  std::deque<End*> receives;
};

struct World {
  World(const std::vector<Device>& devices_, const CommunicatorOptions& options_)
      : options(options_),
        devices(devices_),
        waiting_for(devices_.size(), -1),
        left(devices_.size(), false),
        streams(devices_.size()) {}

  const CommunicatorOptions options;
  const std::vector<Device> devices;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::tuple<int, int, int>, Lane> lanes;
  std::vector<int> waiting_for;  // for each rank, the peer whose message it waits for, or -1
  std::vector<bool> left;
  // For what a rank receives on a device, one for each channel: a copy that has to wait for its sender holds up no other.
  std::vector<std::array<std::unique_ptr<internal::CopyStream>, Communicator::kChannels>> streams;
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
    if (end_.copied && !awaited_) {
      end_.copied->settle();
    }
  }

  End& end() { return end_; }

  void wait(void* stream) override {
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
    if (end_.copied) {
      end_.copied->hold(world_->devices[static_cast<std::size_t>(rank_)].index, stream);
      awaited_ = true;
    }
  }

  Clock::time_point finished_at() const override { return end_.copied ? end_.copied->time() : end_.finished; }
  std::optional<Clock::time_point> started_at() const override {
    return end_.started ? std::optional(end_.started->time()) : std::nullopt;
  }

 private:
  std::shared_ptr<World> world_;
  int rank_;
  std::deque<End*>& queue_;
  End end_;
  bool awaited_ = false;
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
  std::optional<std::string> failure() const override {
    const std::lock_guard lock(world_->mutex);
    return world_->failure.empty() ? std::nullopt : std::optional(world_->failure);
  }
  Device device() const override { return world_->devices[static_cast<std::size_t>(rank_)]; }
  Memory allocate(std::int64_t bytes) override {
    return on_device() ? internal::allocate_on_device(device().index, bytes) : Communicator::allocate(bytes);
  }

 protected:
  void spread(const std::string& failure) noexcept override {
    const std::lock_guard lock(world_->mutex);
    world_->fail(failure);
  }
  std::unique_ptr<PendingTransfer> start_send(int to, int channel, std::span<const std::byte> bytes,
                                              void* stream) override {
    End end = end_for(to, channel, bytes.size(), stream);
    end.source = bytes.data();
    return start({rank_, to, channel}, end, true);
  }
  std::unique_ptr<PendingTransfer> start_receive(int from, int channel, std::span<std::byte> bytes,
                                                 void* stream) override {
    End end = end_for(from, channel, bytes.size(), stream);
    end.target = bytes.data();
    return start({from, rank_, channel}, end, false);
  }

 private:
  std::unique_ptr<PendingTransfer> start(const std::tuple<int, int, int>& address, const End& end, bool sends) {
    std::unique_lock lock(world_->mutex);
    world_->require_sound();
    internal::CopyStream* const stream = end.ready ? &copy_stream(std::get<1>(address), std::get<2>(address)) : nullptr;
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
    // Both ends wait for it to be done, and calls of the driver would hold up the other ranks.
    lock.unlock();
    try {
      if (stream != nullptr) {
        copy_between_devices(address, sends ? mine : other, sends ? other : mine, *stream);
      } else if (mine.bytes > 0) {
        std::memcpy(sends ? other.target : mine.target, sends ? mine.source : other.source, mine.bytes);
      }
    } catch (const Error& error) {
      lock.lock();
      mine.state = other.state = End::State::posted;
      world_->fail("rank " + std::to_string(rank_) + " failed: " + error.what());
      lock.unlock();
      transfer.reset();
      throw;
    }
    lock.lock();
    mine.finished = other.finished = PendingTransfer::Clock::now();
    mine.state = other.state = End::State::done;
    world_->changed.notify_all();
    return transfer;
  }

  bool on_device() const { return device().kind == DeviceKind::cuda; }

  End end_for(int peer, int channel, std::size_t bytes, void* stream) const {
    End end;
    end.peer = peer;
    end.bytes = bytes;
    if (on_device() && channel != kHostChannel && bytes > 0) {
      end.ready = std::make_shared<internal::DeviceEvent>(device().index);
      end.ready->record(stream);
    }
    return end;
  }

  // Made when it is first asked for, with World::mutex held.
  internal::CopyStream& copy_stream(int receiver, int channel) const {
    auto& stream = world_->streams[static_cast<std::size_t>(receiver)][static_cast<std::size_t>(channel)];
    if (!stream) {
      stream = std::make_unique<internal::CopyStream>(world_->devices[static_cast<std::size_t>(receiver)].index);
    }
    return *stream;
  }

  void copy_between_devices(const std::tuple<int, int, int>& address, End& from, End& to,
                            internal::CopyStream& stream) const {
    const int source = world_->devices[static_cast<std::size_t>(std::get<0>(address))].index;
    const int target = stream.device();
    auto started = std::make_shared<internal::DeviceEvent>(target);
    auto copied = std::make_shared<internal::DeviceEvent>(target);
    from.ready->hold(target, stream.handle());
    to.ready->hold(target, stream.handle());
    started->record(stream.handle());
    stream.copy(to.target, target, from.source, source, to.bytes);
    copied->record(stream.handle());
    from.copied = to.copied = copied;
    from.started = to.started = started;
  }

  std::shared_ptr<World> world_;
  int rank_;
};

void require_alike(const std::vector<Device>& devices) {
  for (const Device& device : devices) {
    if (device.kind != devices.front().kind || (device.kind == DeviceKind::cpu && device.index != 0)) {
      internal::fail_argument("devices", "different kinds", "CUDA devices, or the CPU for all ranks");
    }
  }
  if (devices.front().kind == DeviceKind::cuda) {
    for (const Device& device : devices) {
      internal::cuda_device(device.index);
    }
    for (const Device& device : devices) {
      for (const Device& peer : devices) {
        internal::open_path(device.index, peer.index);
      }
    }
  }
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, const CommunicatorOptions& options) {
  return local_communicators(std::vector<Device>(static_cast<std::size_t>(std::max(ranks, 0))), options);
}

std::vector<std::unique_ptr<Communicator>> local_communicators(const std::vector<Device>& devices,
                                                               const CommunicatorOptions& options) {
  const auto ranks = static_cast<int>(devices.size());
  if (ranks < 1) {
    internal::fail_argument("ranks", std::int64_t{ranks}, "1 or more");
  }
  if (options.timeout.count() < 1) {
    internal::fail_argument("timeout in milliseconds", std::int64_t{options.timeout.count()}, "1 or more");
  }
  require_alike(devices);
  const auto world = std::make_shared<World>(devices, options);
  std::vector<std::unique_ptr<Communicator>> all;
  all.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    all.push_back(std::make_unique<LocalCommunicator>(world, rank));
  }
  return all;
}

}  // namespace tessera
