// Moves blocks and gradients along a Route while the caller computes.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <vector>

#include "dist/route.h"
#include "tessera/communicator.h"
#include "tessera/distributed.h"

namespace tessera::internal {

// Bytes of the messages about each rank's block. Sums are float32 values; none in a forward pass.
struct MessageBytes {
  std::vector<std::int64_t> block;
  std::vector<std::int64_t> sum;
};

// Two buffers for each kind of message: the one that is computed on or sent, and the one that arrives.
class RingEngine {
 public:
  // compute(step, block, sum): works on a block and adds its gradients to `sum`, which is empty in a forward pass.
  using Compute = std::function<void(int step, std::span<const std::byte> block, std::span<float> sum)>;

  RingEngine(Route route, MessageBytes bytes, Communicator& communicator);
  RingEngine(const RingEngine&) = delete;
  RingEngine& operator=(const RingEngine&) = delete;

  const Route& route() const { return route_; }
  std::int64_t memory_bytes() const { return memory_bytes_; }
  // This rank's own block: to be filled before run().
  std::span<std::byte> own_block();
  // After run(): the gradients of this rank's own block, over all ranks.
  std::span<float> own_sum();

  RunReport run(const Compute& compute, bool record_timeline, void* stream);

 private:
  struct Slot {
    Communicator::Memory memory;
    std::int64_t bytes = 0;
  };
  class Pass;

  Slot allocate(std::int64_t bytes, bool wanted);

  Route route_;
  MessageBytes bytes_;
  Communicator& communicator_;
  std::int64_t memory_bytes_ = 0;
  bool sums_ = false;
  std::array<Slot, 2> inner_blocks_;
  std::array<Slot, 2> node_blocks_;  // with several nodes: what inner step 0 works on
  std::array<Slot, 2> travelling_sums_;
  Slot arriving_sum_;
  Slot home_sum_;
  Slot collected_sum_;  // with several nodes: what this node adds to another one's block
  Slot arriving_collected_;
};

}  // namespace tessera::internal
