#include "dist/ring_engine.h"

#include <algorithm>
#include <cstddef>

namespace tessera::internal {

namespace {

enum Channel : int { kBlocks, kNodeBlocks, kSums, kCollected };

std::int64_t largest(const std::vector<std::int64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

void add_floats(std::span<const float> source, std::span<float> target) {
  for (std::size_t n = 0; n < target.size(); ++n) {
    target[n] += source[n];
  }
}

// Seconds covered by any of the intervals.
double covered(std::vector<TimelineEvent> events) {
  std::sort(events.begin(), events.end(),
            [](const TimelineEvent& a, const TimelineEvent& b) { return a.begin < b.begin; });
  double seconds = 0;
  double until = 0;
  for (const TimelineEvent& event : events) {
    seconds += std::max(0.0, event.end - std::max(event.begin, until));
    until = std::max(until, event.end);
  }
  return seconds;
}

// The clock and the account of one run.
class Recorder {
 public:
  Recorder(bool keep, const Traffic& before) : keep_(keep), before_(before) {}

  double now() const { return seconds_at(PendingTransfer::Clock::now()); }
  double seconds_at(PendingTransfer::Clock::time_point time) const {
    return std::chrono::duration<double>(time - start_).count();
  }
  void computed(int step, int owner, double begin) {
    report_.compute_seconds += now() - begin;
    record({TimelineEvent::Kind::compute, step, owner, begin, now(), 0});
  }
  void waited(int step, int owner, double begin) {
    report_.wait_seconds += now() - begin;
    record({TimelineEvent::Kind::wait, step, owner, begin, now(), 0});
  }
  void received(const TimelineEvent& event) {
    receives_.push_back(event);
    record(event);
  }
  RunReport finish(const Traffic& after) {
    report_.seconds = now();
    report_.transfer_seconds = covered(std::move(receives_));
    report_.traffic = {after.bytes_sent - before_.bytes_sent, after.bytes_received - before_.bytes_received,
                       after.messages_sent - before_.messages_sent};
    return std::move(report_);
  }

 private:
  void record(const TimelineEvent& event) {
    if (keep_) {
      report_.timeline.push_back(event);
    }
  }

  bool keep_;
  Traffic before_;
  PendingTransfer::Clock::time_point start_ = PendingTransfer::Clock::now();
  RunReport report_;
  std::vector<TimelineEvent> receives_;
};

// A transfer under way; as long as it is not valid() there is nothing to wait for.
struct Arrival {
  Transfer transfer;
  TimelineEvent event;
};

}  // namespace

// One run: the transfers under way, which are taken back when it ends early.
class RingEngine::Pass {
 public:
  Pass(RingEngine& engine, const Compute& compute, bool record, void* stream)
      : engine_(engine), compute_(compute), stream_(stream), recorder_(record, engine.communicator_.traffic()) {}

  RunReport run() {
    const Route& route = engine_.route_;
    clear(engine_.home_sum_, route.rank);
    std::size_t next = 0;
    for (int outer = 0; outer < route.topology.nodes; ++outer) {
      start_outer(route.steps[next], route.collects[static_cast<std::size_t>(outer)]);
      for (int inner = 0; inner < route.topology.locals; ++inner, ++next) {
        step(static_cast<int>(next), route.steps[next]);
      }
      finish_outer(route.collects[static_cast<std::size_t>(outer)]);
    }
    if (route.home_from_node) {
      Arrival home =
          receive(route.previous_node, kCollected, engine_.arriving_collected_, sum_bytes(route.rank), route.rank);
      await(home);
      add_sum(engine_.arriving_collected_, engine_.home_sum_, route.rank);
    }
    for (Transfer* sent : {&sent_sums_[0], &sent_sums_[1], &sent_collected_}) {
      await(*sent, route.rank);
    }
    return recorder_.finish(engine_.communicator_.traffic());
  }

 private:
  // Transfers between nodes have the whole outer step of time.
  void start_outer(const RouteStep& first, const RouteCollect& collect) {
    const Route& route = engine_.route_;
    if (first.receives_block_of_node) {
      arriving_node_block_ = receive(route.previous_node, kNodeBlocks, block_slot(first.outer + 1, 0),
                                     block_bytes(first.next_node_owner), first.next_node_owner);
    }
    if (first.sends_block_to_node) {
      sent_node_block_ = send(route.next_node, kNodeBlocks, block_slot(first.outer, 0), block_bytes(first.owner));
    }
    if (collect.receives_collected) {
      arriving_collected_ = receive(route.previous_node, kCollected, engine_.arriving_collected_,
                                    sum_bytes(collect.owner), collect.owner);
    }
  }

  void step(int index, const RouteStep& step) {
    const Route& route = engine_.route_;
    index_ = index;
    const Slot& block = block_slot(step.outer, step.inner);
    Arrival next_block;
    Transfer sent_block;
    Arrival sum_so_far;
    if (step.receives_block) {
      next_block = receive(route.previous_local, kBlocks, block_slot(step.outer, step.inner + 1),
                           block_bytes(step.next_owner), step.next_owner);
    }
    if (step.sends_block) {
      sent_block = send(route.next_local, kBlocks, block, block_bytes(step.owner));
    }
    if (step.receives_sum) {
      sum_so_far = receive(route.previous_local, kSums, engine_.arriving_sum_, sum_bytes(step.owner), step.owner);
    }
    const Slot& sum = sum_slot(step);
    if (engine_.sums_ && (step.inner > 0 || step.outer > 0)) {
      Transfer& earlier = step.inner > 0 ? sent_sums_[static_cast<std::size_t>(step.inner & 1)] : sent_collected_;
      await(earlier, step.owner);
      clear(sum, step.owner);
    }
    if (step.computes) {
      const double begin = recorder_.now();
      compute_(index, {block.memory.get(), static_cast<std::size_t>(block_bytes(step.owner))}, floats(sum, step.owner));
      recorder_.computed(index, step.owner, begin);
    }
    if (sum_so_far.transfer.valid()) {
      await(sum_so_far);
      add_sum(engine_.arriving_sum_, sum, step.owner);
    }
    if (step.sends_sum) {
      sent_sums_[static_cast<std::size_t>(step.inner & 1)] = send(route.next_local, kSums, sum, sum_bytes(step.owner));
    }
    await(next_block);
    await(sent_block, step.owner);
  }

  void finish_outer(const RouteCollect& collect) {
    const Route& route = engine_.route_;
    const Slot& sum = route.rank == collect.owner ? engine_.home_sum_ : engine_.collected_sum_;
    if (collect.receives_sum) {
      Arrival back =
          receive(route.previous_local, kSums, engine_.arriving_sum_, sum_bytes(collect.owner), collect.owner);
      await(back);
      add_sum(engine_.arriving_sum_, sum, collect.owner);
    }
    if (arriving_collected_.transfer.valid()) {
      await(arriving_collected_);
      add_sum(engine_.arriving_collected_, sum, collect.owner);
    }
    if (collect.sends_collected) {
      sent_collected_ = send(route.next_node, kCollected, sum, sum_bytes(collect.owner));
    }
    await(arriving_node_block_);
    await(sent_node_block_, collect.owner);
  }

  // Inner steps take turns; with several nodes inner step 0 has slots of its own, whose messages take longer.
  const Slot& block_slot(int outer, int inner) const {
    if (inner == 0 && engine_.route_.topology.nodes > 1) {
      return engine_.node_blocks_[static_cast<std::size_t>(outer & 1)];
    }
    return engine_.inner_blocks_[static_cast<std::size_t>(inner & 1)];
  }
  const Slot& sum_slot(const RouteStep& step) const {
    if (step.inner > 0) {
      return engine_.travelling_sums_[static_cast<std::size_t>(step.inner & 1)];
    }
    return step.outer == 0 ? engine_.home_sum_ : engine_.collected_sum_;
  }

  std::int64_t block_bytes(int owner) const { return engine_.bytes_.block[static_cast<std::size_t>(owner)]; }
  std::int64_t sum_bytes(int owner) const { return engine_.bytes_.sum[static_cast<std::size_t>(owner)]; }

  std::span<float> floats(const Slot& slot, int owner) const {
    if (!engine_.sums_) {
      return {};
    }
    return {reinterpret_cast<float*>(slot.memory.get()), static_cast<std::size_t>(sum_bytes(owner)) / sizeof(float)};
  }
  void clear(const Slot& slot, int owner) const {
    const std::span<float> values = floats(slot, owner);
    std::fill(values.begin(), values.end(), 0.0F);
  }
  void add_sum(const Slot& source, const Slot& target, int owner) const {
    add_floats(floats(source, owner), floats(target, owner));
  }

  Arrival receive(int from, Channel channel, const Slot& slot, std::int64_t bytes, int owner) {
    const double begin = recorder_.now();
    return {engine_.communicator_.receive(from, channel, {slot.memory.get(), static_cast<std::size_t>(bytes)}, stream_),
            {TimelineEvent::Kind::transfer, index_, owner, begin, begin, bytes}};
  }
  Transfer send(int to, Channel channel, const Slot& slot, std::int64_t bytes) {
    return engine_.communicator_.send(to, channel, {slot.memory.get(), static_cast<std::size_t>(bytes)}, stream_);
  }
  void await(Transfer& transfer, int owner) {
    if (transfer.valid()) {
      const double begin = recorder_.now();
      transfer.wait(stream_);
      recorder_.waited(index_, owner, begin);
      transfer = {};
    }
  }
  void await(Arrival& arrival) {
    if (arrival.transfer.valid()) {
      const double begin = recorder_.now();
      arrival.transfer.wait(stream_);
      recorder_.waited(index_, arrival.event.owner, begin);
      arrival.event.end = std::max(arrival.event.begin, recorder_.seconds_at(arrival.transfer.finished_at()));
      recorder_.received(arrival.event);
      arrival.transfer = {};
    }
  }

  RingEngine& engine_;
  const Compute& compute_;
  void* stream_;
  Recorder recorder_;
  int index_ = 0;
  Arrival arriving_node_block_;
  Arrival arriving_collected_;
  Transfer sent_node_block_;
  Transfer sent_collected_;
  std::array<Transfer, 2> sent_sums_;
};

RingEngine::RingEngine(Route route, MessageBytes bytes, Communicator& communicator)
    : route_(std::move(route)), bytes_(std::move(bytes)), communicator_(communicator) {
  const std::int64_t block = largest(bytes_.block);
  const std::int64_t sum = largest(bytes_.sum);
  const bool rings = route_.topology.locals > 1;
  const bool nodes = route_.topology.nodes > 1;
  sums_ = !bytes_.sum.empty();
  inner_blocks_ = {allocate(block, rings || !nodes), allocate(block, rings)};
  node_blocks_ = {allocate(block, nodes), allocate(block, nodes)};
  travelling_sums_ = {allocate(sum, sums_ && rings), allocate(sum, sums_ && rings)};
  arriving_sum_ = allocate(sum, sums_ && rings);
  home_sum_ = allocate(sum, sums_);
  collected_sum_ = allocate(sum, sums_ && nodes);
  arriving_collected_ = allocate(sum, sums_ && nodes);
}

RingEngine::Slot RingEngine::allocate(std::int64_t bytes, bool wanted) {
  if (!wanted) {
    return {};
  }
  memory_bytes_ += bytes;
  return {communicator_.allocate(bytes), bytes};
}

std::span<std::byte> RingEngine::own_block() {
  const Slot& slot = route_.topology.nodes > 1 ? node_blocks_[0] : inner_blocks_[0];
  return {slot.memory.get(), static_cast<std::size_t>(bytes_.block[static_cast<std::size_t>(route_.rank)])};
}

std::span<float> RingEngine::own_sum() {
  return {reinterpret_cast<float*>(home_sum_.memory.get()),
          static_cast<std::size_t>(bytes_.sum[static_cast<std::size_t>(route_.rank)]) / sizeof(float)};
}

RunReport RingEngine::run(const Compute& compute, bool record_timeline, void* stream) {
  return Pass(*this, compute, record_timeline, stream).run();
}

}  // namespace tessera::internal
