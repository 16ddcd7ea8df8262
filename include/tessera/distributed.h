// One attention problem over many ranks that each own some of its tokens.
//
// Ring Attention (Liu et al., arXiv 2310.01889) and BurstAttention (Sun et al., arXiv 2403.09347): blocks of tokens travel
// from rank to rank while the ranks compute on those that they have; (O, LSE) of the blocks are merged in float32.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/communicator.h"
#include "tessera/plan.h"
#include "tessera/sequence_layout.h"

namespace tessera {

// What travels when. In the forward pass K and V travel, always.
enum class RingSchedule : std::uint8_t {
  automatic,    // double_ring where links.ranks_per_node splits the group, else ring or burst: whichever sends less
  ring,         // backward: K, V, dK and dV travel
  burst,        // backward: Q, dO, dQ, LSE and D = rowsum(dO * O) travel, K and V stay (BurstAttention, Algorithm 2)
  double_ring,  // rings inside nodes, and between nodes a ring of rings whose transfer has a whole inner ring of time;
                // backward: what ring or burst would send, whichever is less
};
std::string_view schedule_name(RingSchedule schedule);

// What connects the ranks. Ranks of one node are consecutive.
struct Links {
  int ranks_per_node = 0;  // divides the number of ranks; 0: all of them
};

struct DistributedOptions {
  SequenceLayout::Kind layout = SequenceLayout::Kind::zigzag;
  RingSchedule schedule = RingSchedule::automatic;
  Links links;
  int ranks = 0;     // that the tensors were made for: must be the communicator's; 0: not said
  PlanOptions plan;  // of each block; its device is where the tensors are
  bool record_timeline = false;
};

// What one rank does in one pass, known before it runs.
struct DistributedFacts {
  RingSchedule schedule = RingSchedule::ring;  // never automatic
  bool queries_travel = false;                 // backward: burst's tensors and not ring's
  int ranks = 1;
  int ranks_per_node = 1;
  std::int64_t queries = 0;  // of this rank, in each sequence
  std::int64_t keys = 0;
  int steps_computed = 0;      // of `ranks`; the others have nothing to do
  TileSchedule::Counts tiles;  // of 64 x 64, over all sequences and query heads
  double flops_of_pairs = 0;
  std::int64_t bytes_sent = 0;           // in one run
  std::int64_t bytes_sent_to_nodes = 0;  // the part of it that goes to another node
  std::int64_t memory_bytes = 0;         // held besides the caller's tensors
};

// A stretch of time of one run, in seconds since it began.
struct TimelineEvent {
  enum class Kind : std::uint8_t { compute, transfer, wait };
  Kind kind = Kind::compute;
  int step = 0;
  int owner = 0;  // whose block it is about
  double begin = 0;
  double end = 0;
  std::int64_t bytes = 0;
};

struct RunReport {
  double seconds = 0;
  double compute_seconds = 0;
  double wait_seconds = 0;              // for transfers, with nothing to compute
  double transfer_seconds = 0;          // that at least one receive was under way
  Traffic traffic;                      // of this run
  std::vector<TimelineEvent> timeline;  // with record_timeline

  // Of the time in which transfers were under way, the share that was not waited for.
  double share_hidden() const;
};

// The facts of every rank of a group without one, for planning.
// Throws as DistributedPlan::make does for a problem that cannot be distributed.
std::vector<DistributedFacts> distributed_facts(const Problem& whole, Pass pass, int ranks,
                                                const DistributedOptions& options = {});

// One rank's part of one pass. Makes all decisions and allocates all memory once; runs as often as wanted, one at a time.
//
// `whole` is the whole problem, the same on every rank: seq_q, seq_k, the mask's segments, key_lengths and dropout's
// positions are those of the whole sequences. Every feature of Problem is there but the ragged layout (pack the sequences
// with Mask::segments), a cache of keys and float64.
//
// Tensors of a rank: tokens are those that SequenceLayout gives it, of seq_q for q, out, lse, dout, dlse, dq and of seq_k for
// k, v, dk, dv. Bias, slopes and sinks are those of the whole problem on every rank. dbias, as large as the bias, and dsinks
// hold this rank's share: the gradient is the sum over the ranks, as for every parameter of a model.
//
// Results do not depend on timing, and dropout drops the same elements as on one device.
class DistributedPlan {
 public:
  // Every rank of the group has to call it, with the same arguments but for options.plan. Throws Error(invalid_argument)
  // or Error(unsupported) for what cannot be done, and Error(peer) that names a rank which failed or which differs.
  static DistributedPlan make(const Problem& whole, Pass pass, Communicator& communicator,
                              const DistributedOptions& options = {});

  DistributedPlan(DistributedPlan&&) noexcept;
  DistributedPlan& operator=(DistributedPlan&&) noexcept;
  ~DistributedPlan();

  const DistributedFacts& facts() const;

  // Every rank of the group has to run it. Outputs are written when all is computed: a run that throws leaves them as
  // they were. Throws Error(invalid_argument) for a wrong tensor of this rank, which the others hear of, and Error(peer)
  // that names another rank.
  RunReport run(const ForwardTensors& tensors, void* stream = nullptr);
  RunReport run(const BackwardTensors& tensors, void* stream = nullptr);

 private:
  struct State;
  explicit DistributedPlan(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A kernel that was timed alone on the device of a rank.
struct KernelRate {
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  bool masked = false;          // whether anything but the ends hides pairs
  double flops_per_second = 0;  // of the pairs that attend
};

// Rates of a machine, for predictions.
struct ClusterRates {
  double flops_per_second = 0;          // of one rank, for the pass that is predicted
  double node_bytes_per_second = 0;     // that a rank sends to a rank of its node while it receives as much
  double network_bytes_per_second = 0;  // the same between nodes
  double message_seconds = 0;           // that every message takes besides its bytes
  double step_seconds = 0;              // that every computed step takes besides its FLOPs
  double memory_bytes_per_second = 0;   // at which a rank adds up results; 0: that takes no time
  // Ranks on the cores of one machine: they move the messages themselves, so that nothing hides the time of one.
  bool cpu_ranks = false;
  // Kernels of the pass. Each part of a step takes the rate of the one that is most like it; without any, flops_per_second.
  std::vector<KernelRate> kernels{};
};

struct Prediction {
  double seconds = 0;           // of the slowest rank
  double compute_seconds = 0;   // of the rank with the most work: its kernels
  double node_seconds = 0;      // that the busiest link inside a node is used
  double network_seconds = 0;   // that the busiest link between nodes is used
  std::int64_t bytes_sent = 0;  // by the rank that sends most
  // "compute", "node link" or "network": the largest of the three terms above.
  std::string binding;
  double efficiency() const { return seconds > 0 ? compute_seconds / seconds : 1; }
};

// One pass, simulated step by step on every rank: a transfer starts with the step that it is beside and is awaited after
// it; links in either direction serve one message at a time.
Prediction predict(const Problem& whole, Pass pass, int ranks, const DistributedOptions& options,
                   const ClusterRates& rates);

}  // namespace tessera
