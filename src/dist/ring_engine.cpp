#include "dist/ring_engine.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "dist/tensor_ops.h"

namespace tessera::internal {

namespace {

enum Channel : int { kBlocks, kNodeBlocks, kSums, kCollected };

// A message, or all of a block, under way. As long as it is not there() there is nothing to wait for.
struct Arrival {
  std::vector<Transfer> transfers;
  Mark posted;
  int owner = 0;
  std::int64_t bytes = 0;

  bool there() const { return !transfers.empty(); }
};
using Departure = std::vector<Transfer>;

}  // namespace

std::int64_t MessageBytes::of_block(int owner) const {
  const auto& messages = block[static_cast<std::size_t>(owner)];
  return std::accumulate(messages.begin(), messages.end(), std::int64_t{0});
}

// One run: the transfers under way, which are taken back when it ends early.
class RingEngine::Pass {
 public:
  Pass(RingEngine& engine, RingWork& work, std::span<const std::span<const std::byte>> own, Recorder& recorder,
       void* stream)
      : engine_(engine), work_(work), own_(own), recorder_(recorder), stream_(stream) {}

  void run() {
    const Route& route = engine_.route_;
    const bool nested = route.topology.nodes > 1;
    std::size_t next = 0;
    for (int outer = 0; outer < route.topology.nodes; ++outer) {
      for (int inner = 0; inner < route.topology.locals; ++inner, ++next) {
        step(static_cast<int>(next), route.steps[next], route.collects[static_cast<std::size_t>(outer)]);
      }
      finish_outer(route.collects[static_cast<std::size_t>(outer)], !nested);
    }
    if (nested) {
      Arrival home;
      if (route.home_from_node) {
        home = receive_sum(route.previous_node, kCollected, engine_.arriving_collected_, route.rank, recorder_.mark(),
                           stream_);
      }
      engine_.communicator_.flush();
      finish_own();
      add_to_own(home, engine_.arriving_collected_, true);
    }
    for (Departure* sent : {&sent_sums_[0], &sent_sums_[1], &sent_collected_}) {
      await(*sent, route.rank);
    }
  }

 private:
  // Messages of one step, of which those between nodes have the whole outer step of time. `before` is the point of the stream
  // from which on their memory may be used.
  void post(const RouteStep& step, const RouteCollect& collect, const Mark& before) {
    const Route& route = engine_.route_;
    void* const stream = engine_.stream_of_posts(before, stream_);
    if (step.receives_block_of_node) {
      arriving_node_block_ = receive_block(route.previous_node, kNodeBlocks, block_slot(step.outer + 1, 0),
                                           step.next_node_owner, before, stream);
    }
    if (step.sends_block_to_node) {
      sent_node_block_ = send_block(route.next_node, kNodeBlocks, block_slot(step.outer, 0), step.owner, stream);
    }
    if (step.inner == 0 && collect.receives_collected) {
      arriving_collected_ =
          receive_sum(route.previous_node, kCollected, engine_.arriving_collected_, collect.owner, before, stream);
    }
    if (step.receives_block) {
      arriving_block_ = receive_block(route.previous_local, kBlocks, block_slot(step.outer, step.inner + 1),
                                      step.next_owner, before, stream);
    }
    if (step.sends_block) {
      sent_block_ = send_block(route.next_local, kBlocks, block_slot(step.outer, step.inner), step.owner, stream);
    }
    if (step.receives_sum) {
      arriving_sum_ = receive_sum(route.previous_local, kSums, engine_.arriving_sum_, step.owner, before, stream);
    }
    engine_.communicator_.flush();
  }

  void step(int index, const RouteStep& step, const RouteCollect& collect) {
    const Route& route = engine_.route_;
    index_ = index;
    const Memory& block = block_slot(step.outer, step.inner);
    Mark begin = recorder_.mark();
    // A device has its work before hosts talk about messages. Not so a CPU, which would first finish it, nor where a collected
    // sum still has to leave, which it does among the messages of this step.
    const bool posts_first = engine_.posts_first_ || !sent_collected_.empty();
    if (posts_first) {
      post(step, collect, begin);
      begin = recorder_.mark();
    }
    const bool own = step.owner == route.rank;
    const bool collects = step.inner == 0;
    const auto turn = static_cast<std::size_t>(step.inner & 1);
    const bool sums = engine_.sums_ && !own && (collects || step.computes || step.receives_sum);
    const Memory& sum = collects ? engine_.collected_sum_ : engine_.travelling_sums_[turn];
    if (sums) {  // what the memory held before has left
      await(collects ? sent_collected_ : sent_sums_[turn], step.owner);
    }
    if (step.computes) {
      work_.compute(index, own ? nullptr : block.get(), sums ? sum.get() : nullptr);
      recorder_.computed(index, step.owner, begin);
    }
    if (!posts_first) {
      post(step, collect, begin);
    }
    add_to_own(back_, engine_.arriving_sum_, false);
    if (sums) {
      await(arriving_sum_);
      const Mark arrived = recorder_.mark();
      work_.gather(index, sum.get(), step.receives_sum ? engine_.arriving_sum_.get() : nullptr);
      recorder_.computed(index, step.owner, arrived);
    }
    if (step.sends_sum) {
      sent_sums_[turn] = send_sum(route.next_local, kSums, sum, step.owner);
    }
    await(arriving_block_);
    await(sent_block_, step.owner);
  }

  void finish_outer(const RouteCollect& collect, bool last) {
    const Route& route = engine_.route_;
    const bool own = route.rank == collect.owner;
    Arrival back;
    if (collect.receives_sum) {
      back = receive_sum(route.previous_local, kSums, engine_.arriving_sum_, collect.owner, recorder_.mark(), stream_);
    }
    engine_.communicator_.flush();
    if (last) {
      finish_own();
    }
    if (own && !last) {
      back_ = std::move(back);  // comes beside the first step of the next node's blocks, which need none of its memory
    } else if (own) {
      add_to_own(back, engine_.arriving_sum_, true);
    } else {
      collect_from(back, engine_.arriving_sum_);
    }
    collect_from(arriving_collected_, engine_.arriving_collected_);
    if (collect.sends_collected) {
      sent_collected_ = send_sum(route.next_node, kCollected, engine_.collected_sum_, collect.owner);
    }
    await(arriving_node_block_);
    await(sent_node_block_, collect.owner);
  }

  void finish_own() {
    if (engine_.sums_) {
      const Mark begin = recorder_.mark();
      work_.finish_own();
      recorder_.computed(index_, engine_.route_.rank, begin);
    }
  }

  // Inner steps take turns; with several nodes inner step 0 has slots of its own, whose messages take longer.
  const Memory& block_slot(int outer, int inner) const {
    if (inner == 0 && engine_.route_.topology.nodes > 1) {
      return engine_.node_blocks_[static_cast<std::size_t>(outer & 1)];
    }
    return engine_.inner_blocks_[static_cast<std::size_t>(inner & 1)];
  }

  std::int64_t sum_bytes(int owner) const { return engine_.bytes_.sum[static_cast<std::size_t>(owner)]; }
  const std::vector<std::int64_t>& block_messages(int owner) const {
    return engine_.bytes_.block[static_cast<std::size_t>(owner)];
  }

  void add_to_own(Arrival& arrival, const Memory& memory, bool stays) {
    if (!arrival.there()) {
      return;
    }
    await(arrival);
    const Mark begin = recorder_.mark();
    work_.add_to_own(memory.get(), stays);
    recorder_.computed(index_, arrival.owner, begin);
  }

  // Adds gradients of another node's block to what this node has.
  void collect_from(Arrival& arrival, const Memory& memory) {
    if (!arrival.there()) {
      return;
    }
    await(arrival);
    const std::int64_t count = sum_bytes(arrival.owner) / std::int64_t{sizeof(float)};
    const Device device = engine_.communicator_.device();
    const TensorView to(engine_.collected_sum_.get(), DType::float32, {count}, device);
    const Mark begin = recorder_.mark();
    sum(std::to_array<ConstTensorView>({to, ConstTensorView(memory.get(), DType::float32, {count}, device)}), to,
        stream_);
    recorder_.computed(index_, arrival.owner, begin);
  }

  Arrival receive_block(int from, Channel channel, const Memory& slot, int owner, const Mark& posted, void* stream) {
    Arrival arrival{{}, posted, owner, engine_.bytes_.of_block(owner)};
    std::byte* memory = slot.get();
    for (const std::int64_t bytes : block_messages(owner)) {
      arrival.transfers.push_back(
          engine_.communicator_.receive(from, channel, {memory, static_cast<std::size_t>(bytes)}, stream));
      memory += bytes;
    }
    return arrival;
  }
  Departure send_block(int to, Channel channel, const Memory& slot, int owner, void* stream) {
    Departure departure;
    const std::byte* memory = slot.get();
    for (std::size_t n = 0; n < block_messages(owner).size(); ++n) {
      const auto bytes = static_cast<std::size_t>(block_messages(owner)[n]);
      const std::span<const std::byte> message = owner == engine_.route_.rank ? own_[n] : std::span(memory, bytes);
      departure.push_back(engine_.communicator_.send(to, channel, message, stream));
      memory += bytes;
    }
    return departure;
  }
  Arrival receive_sum(int from, Channel channel, const Memory& slot, int owner, const Mark& posted, void* stream) {
    Arrival arrival{{}, posted, owner, sum_bytes(owner)};
    arrival.transfers.push_back(
        engine_.communicator_.receive(from, channel, {slot.get(), static_cast<std::size_t>(sum_bytes(owner))}, stream));
    return arrival;
  }
  Departure send_sum(int to, Channel channel, const Memory& slot, int owner) {
    Departure departure;
    departure.push_back(
        engine_.communicator_.send(to, channel, {slot.get(), static_cast<std::size_t>(sum_bytes(owner))}, stream_));
    return departure;
  }

  void await(Departure& departure, int owner) {
    if (departure.empty()) {
      return;
    }
    const Mark begin = recorder_.mark_of_wait();
    for (Transfer& transfer : departure) {
      transfer.wait(stream_);
    }
    recorder_.waited(index_, owner, begin);
    departure.clear();
  }
  void await(Arrival& arrival) {
    if (!arrival.there()) {
      return;
    }
    const Mark begin = recorder_.mark_of_wait();
    for (Transfer& transfer : arrival.transfers) {
      transfer.wait(stream_);
    }
    recorder_.waited(index_, arrival.owner, begin);
    // Its messages follow each other: the first begins and the last ends what is recorded.
    recorder_.received(index_, arrival.owner, arrival.bytes, arrival.posted, std::move(arrival.transfers));
    arrival.transfers.clear();
  }

  RingEngine& engine_;
  RingWork& work_;
  std::span<const std::span<const std::byte>> own_;
  Recorder& recorder_;
  void* stream_;
  int index_ = 0;
  Arrival arriving_block_;
  Arrival arriving_sum_;
  Departure sent_block_;
  Arrival arriving_node_block_;
  Arrival arriving_collected_;
  Arrival back_;  // gradients of the own block from its own node
  Departure sent_node_block_;
  Departure sent_collected_;
  std::array<Departure, 2> sent_sums_;
};

RingEngine::RingEngine(Route route, MessageBytes bytes, Communicator& communicator)
    : route_(std::move(route)), bytes_(std::move(bytes)), communicator_(communicator) {
  std::int64_t block = 0;
  std::int64_t sum = 0;
  for (int owner = 0; owner < route_.topology.ranks(); ++owner) {
    block = std::max(block, bytes_.of_block(owner));
    sum = bytes_.sum.empty() ? 0 : std::max(sum, bytes_.sum[static_cast<std::size_t>(owner)]);
  }
  const bool rings = route_.topology.locals > 1;
  const bool nodes = route_.topology.nodes > 1;
  posts_first_ = !on_device() || communicator.transfers_are_kernels();
  sums_ = !bytes_.sum.empty();
  inner_blocks_ = {allocate(block, rings || !nodes), allocate(block, rings)};
  node_blocks_ = {allocate(block, nodes), allocate(block, nodes)};
  travelling_sums_ = {allocate(sum, sums_ && rings), allocate(sum, sums_ && rings)};
  arriving_sum_ = allocate(sum, sums_ && rings);
  collected_sum_ = allocate(sum, sums_ && nodes);
  arriving_collected_ = allocate(sum, sums_ && nodes);
}

RingEngine::Memory RingEngine::allocate(std::int64_t bytes, bool wanted) {
  if (!wanted) {
    return {};
  }
  memory_bytes_ += bytes;
  return communicator_.allocate(bytes);
}

bool RingEngine::on_device() const { return communicator_.device().kind == DeviceKind::cuda; }

void* RingEngine::stream_of_posts(const Mark& before, void* stream) {
  if (!on_device()) {
    return stream;
  }
  const int device = communicator_.device().index;
  if (!posts_) {
    posts_ = std::make_unique<CopyStream>(device);
  }
  before.event->hold(device, posts_->handle());
  return posts_->handle();
}

std::byte* RingEngine::own_block() const {
  return (route_.topology.nodes > 1 ? node_blocks_[0] : inner_blocks_[0]).get();
}

void RingEngine::run(RingWork& work, std::span<const std::span<const std::byte>> own, Recorder& recorder,
                     void* stream) {
  recorder.begin_steps();
  Pass(*this, work, own, recorder, stream).run();
  recorder.end_steps();
}

}  // namespace tessera::internal
