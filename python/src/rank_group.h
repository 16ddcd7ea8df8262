// One rank's end of a group, with the plans of what it computed last. Knows no Python.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "shared_memory.h"
#include "tessera/distributed.h"

namespace tessera::python {

// What a rank asks for.
struct Request {
  Problem problem;  // the whole one, but for seq_q and seq_k, which are this rank's tokens
  Pass pass = Pass::forward;
  DistributedOptions options;
  bool seed_of_rank_0 = false;  // the seed of dropout is whatever rank 0 has drawn
};

// Ranks agree before each pass, in host memory: lengths of the whole sequences are sums of what they have, and what one
// of them cannot take is an exception on all of them, after which the group is as good as before.
class RankGroup {
 public:
  struct Result {
    RunReport report;
    std::uint64_t seed = 0;  // of dropout
  };

  explicit RankGroup(std::unique_ptr<Communicator> communicator);

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& transport() const { return transport_; }
  const Device& device() const { return device_; }
  bool closed() const;
  // Why the group is of no further use; nothing while it is.
  std::optional<std::string> failure() const;
  std::int64_t memory_bytes() const;
  Traffic traffic() const;

  // Collective. Throw Error(invalid_argument) for lengths that are not those of the layout, Error(peer) for what other
  // ranks found, and as DistributedPlan does.
  Result run(const Request& request, const ForwardTensors& tensors, void* stream);
  Result run(const Request& request, const BackwardTensors& tensors, void* stream);
  std::vector<DistributedFacts> facts(const Request& request);
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine);
  // In place of one of these, by a rank that cannot: the others throw Error(peer) with this text. Throws nothing.
  void decline(const std::string& text) noexcept;

  // Tells the others that this rank has failed, and why.
  void abort(const std::string& reason);
  // Frees plans and their memory.
  void forget_plans();
  // Leaves the group; waits for the other ranks to leave, at most for the timeout.
  void close();

 private:
  // What ranks tell each other before a pass.
  struct Statement {
    std::uint64_t hash = 0;  // of everything but lengths and seed
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    std::uint64_t seed = 0;
    std::uint64_t declines = 0;
    std::array<char, 472> text{};  // why
  };
  struct Entry {
    std::vector<std::uint64_t> key;
    DistributedPlan plan;
  };
  // The same on every rank.
  struct Agreement {
    Problem whole;
    std::vector<std::uint64_t> key;
  };
  static constexpr std::size_t kMostPlans = 8;

  template <class Tensors>
  Result run_pass(const Request& request, const Tensors& tensors, void* stream);
  std::vector<Statement> exchange(const Statement& mine);
  Agreement agree(const Request& request);
  DistributedPlan& plan_for(const Request& request, const Agreement& agreement);
  MemorySharing& open();

  mutable std::mutex mutex_;  // ranks of other processes meet the calls of this one in one order
  std::unique_ptr<MemorySharing> communicator_;
  std::list<Entry> plans_;  // the last one used comes first
  int rank_;
  int size_;
  std::string transport_;
  Device device_;
};

}  // namespace tessera::python
