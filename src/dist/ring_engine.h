// Moves blocks and gradients along a Route while the caller computes.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "cuda/stream.h"
#include "dist/recorder.h"
#include "dist/route.h"
#include "tessera/communicator.h"
#include "tessera/distributed.h"

namespace tessera::internal {

// Bytes of the messages about each rank's block. Sums are float32 values; none in a forward pass. Each tensor of a block is a
// message of its own, so that the owner's need not lie together.
struct MessageBytes {
  std::vector<std::vector<std::int64_t>> block;  // of each owner: of its messages, which lie together elsewhere
  std::vector<std::int64_t> sum;

  std::int64_t of_block(int owner) const;
};

// What a rank does with the blocks that come along.
class RingWork {
 public:
  RingWork() = default;
  RingWork(const RingWork&) = delete;
  RingWork& operator=(const RingWork&) = delete;
  virtual ~RingWork() = default;

  // Works on the block of a step, or on this rank's own: then both are null. Gradients of the block are for `sum`.
  virtual void compute(int step, std::byte* block, std::byte* sum) = 0;
  // Writes to `sum` the gradients of a travelling block: those of this step, if it computed, and, unless null, those that have
  // `arrived`.
  virtual void gather(int step, std::byte* sum, std::byte* arrived) = 0;
  // A share of the own block's gradients. `stays`: until the run ends.
  virtual void add_to_own(std::byte* arrived, bool stays) = 0;
  // What is left to do with the own block while the last gradients are on their way.
  virtual void finish_own() = 0;
};

// Two buffers for each kind of message: the one that is computed on or sent, and the one that arrives.
class RingEngine {
 public:
  RingEngine(Route route, MessageBytes bytes, Communicator& communicator);
  RingEngine(const RingEngine&) = delete;
  RingEngine& operator=(const RingEngine&) = delete;

  const Route& route() const { return route_; }
  std::int64_t memory_bytes() const { return memory_bytes_; }
  // Where this rank's own block can be put together.
  std::byte* own_block() const;

  // `own`: the messages of this rank's own block.
  void run(RingWork& work, std::span<const std::span<const std::byte>> own, Recorder& recorder, void* stream);

 private:
  using Memory = Communicator::Memory;
  class Pass;

  Memory allocate(std::int64_t bytes, bool wanted);
  bool on_device() const;
  // For messages whose memory may be used from `before` on, a point of `stream`, which already has more work.
  void* stream_of_posts(const Mark& before, void* stream);

  Route route_;
  MessageBytes bytes_;
  Communicator& communicator_;
  std::int64_t memory_bytes_ = 0;
  bool posts_first_ = false;  // before the kernels of a step
  bool sums_ = false;
  std::unique_ptr<CopyStream> posts_;  // on a device
  std::array<Memory, 2> inner_blocks_;
  std::array<Memory, 2> node_blocks_;  // with several nodes: what inner step 0 works on
  std::array<Memory, 2> travelling_sums_;
  Memory arriving_sum_;
  Memory collected_sum_;  // with several nodes: what this node adds to another one's block
  Memory arriving_collected_;
};

}  // namespace tessera::internal
