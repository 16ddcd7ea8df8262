// What the ranks of a group can do, measured for predictions: kernels, links and sums.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "tessera/distributed.h"

namespace tessera::cli {

// Every rank's value, in the order of ranks.
template <class T>
std::vector<T> gather(Communicator& communicator, const T& mine) {
  std::vector<T> all(static_cast<std::size_t>(communicator.size()));
  const auto bytes = communicator.gather(std::as_bytes(std::span(&mine, 1)));
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    std::memcpy(&all[rank], bytes[rank].data(), sizeof(T));
  }
  return all;
}

struct RankRates {
  double link_bytes_per_second = 0;  // a rank sends while it receives as much
  double message_seconds = 0;
  double memory_bytes_per_second = 0;
  bool cpu_ranks = false;
  std::vector<KernelRate> forward, backward;

  std::vector<KernelRate>& kernels(Pass pass) { return pass == Pass::forward ? forward : backward; }
  // Without kernels of the pass its flops_per_second is 0.
  ClusterRates of(Pass pass) const;
  nlohmann::ordered_json to_json() const;
  static RankRates from_json(const nlohmann::json& json);
};

// Links and sums. Every rank calls it.
RankRates measure_rates(Communicator& communicator);

// The largest parts with and without a mask that rank 0 computes in a pass, on every rank at once: the slowest counts.
void measure_kernels(const Problem& whole, Pass pass, const DistributedOptions& options, double min_seconds,
                     Communicator& communicator, RankRates& rates);

// The median of one problem on one device.
double seconds_alone(const Problem& problem, Pass pass, const PlanOptions& options, double min_seconds,
                     std::uint64_t seed);

}  // namespace tessera::cli
