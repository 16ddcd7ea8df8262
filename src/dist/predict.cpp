// The same route that ranks follow, on a clock: each step waits for what DistributedPlan waits for.
#include <algorithm>
#include <array>

#include "core/fail.h"
#include "dist/ring_program.h"

namespace tessera {

namespace {

using internal::Route;
using internal::RouteCollect;
using internal::RouteStep;

// One direction of one rank's link: a message at a time.
class Link {
 public:
  Link(double bytes_per_second, double message_seconds)
      : bytes_per_second_(bytes_per_second), message_seconds_(message_seconds) {}
  // When a message that is ready at `ready` has arrived.
  double send(double ready, std::int64_t bytes) {
    const double seconds = message_seconds_ + static_cast<double>(bytes) / bytes_per_second_;
    free_ = std::max(free_, ready) + seconds;
    used_ += seconds;
    return free_;
  }
  double used() const { return used_; }

 private:
  double bytes_per_second_;
  double message_seconds_;
  double free_ = 0;
  double used_ = 0;
};

// That attend, over all sequences and query heads.
double pairs(const std::vector<internal::SubProblem>& parts) {
  double total = 0;
  for (const internal::SubProblem& part : parts) {
    const Problem& problem = part.problem;
    const bool alike = !problem.mask.has_segments();
    const std::int64_t schedules = alike ? 1 : problem.batch;
    double pairs = 0;
    if (alike && !problem.mask.has_band()) {
      pairs = static_cast<double>(problem.seq_q) * static_cast<double>(problem.seq_k);
    } else {
      for (std::int64_t b = 0; b < schedules; ++b) {
        const TileSchedule schedule = problem.schedule(b, 1, 1);
        for (std::int64_t query = 0; query < problem.seq_q; ++query) {
          pairs += static_cast<double>(schedule.keys_of(query).size());
        }
      }
    }
    const std::int64_t times = alike ? problem.heads_q * problem.batch : problem.heads_q;
    total += pairs * static_cast<double>(times);
  }
  return total;
}

struct Rank {
  Route route;
  std::vector<double> step_seconds;
  double closing_seconds = 0;  // of the own block, while its gradients come home
  double clock = 0;
  double compute_seconds = 0;
  std::int64_t bytes_sent = 0;
  Link node_link;
  Link network_link;
  bool ring_crosses_nodes = false;  // a flat ring over several nodes
  double sum_arrives = 0;           // of this step's block, from the previous local rank
  double node_block_arrives = 0;
  double collected_arrives = 0;

  Rank(Route route_, const ClusterRates& rates)
      : route(std::move(route_)),
        node_link(rates.node_bytes_per_second, rates.message_seconds),
        network_link(rates.network_bytes_per_second, rates.message_seconds) {}

  double send_along_ring(double ready, std::int64_t bytes) {
    bytes_sent += bytes;
    return (ring_crosses_nodes ? network_link : node_link).send(ready, bytes);
  }
  double send_to_node(double ready, std::int64_t bytes) {
    bytes_sent += bytes;
    return network_link.send(ready, bytes);
  }
};

class Simulation {
 public:
  Simulation(const internal::RingGroup& group, int ranks_per_node, const ClusterRates& rates) : group_(group) {
    for (int rank = 0; rank < group.topology.ranks(); ++rank) {
      Rank& added = ranks_.emplace_back(group.route(rank), rates);
      added.ring_crosses_nodes = rank / ranks_per_node != added.route.next_local / ranks_per_node;
      for (const RouteStep& step : added.route.steps) {
        const double flops = pairs(group.parts(rank, step.owner)) * internal::flops_per_pair(group.whole, group.pass);
        const double seconds = step.computes ? flops / rates.flops_per_second + rates.step_seconds : 0;
        added.step_seconds.push_back(seconds);
        added.compute_seconds += seconds;
      }
      if (group.pass == Pass::backward && group.topology.ranks() > 1 && group.whole.heads_kv > 1) {
        added.closing_seconds = added.step_seconds.front() / 2;
        added.step_seconds.front() -= added.closing_seconds;
      }
    }
  }

  Prediction run() {
    std::size_t next = 0;
    for (int outer = 0; outer < group_.topology.nodes; ++outer) {
      start_outer(next);
      for (int inner = 0; inner < group_.topology.locals; ++inner, ++next) {
        step(next);
      }
      finish_outer(static_cast<std::size_t>(outer));
    }
    for (Rank& rank : ranks_) {
      rank.clock += group_.topology.nodes > 1 ? rank.closing_seconds : 0;
      rank.clock = rank.route.home_from_node ? std::max(rank.clock, rank.collected_arrives) : rank.clock;
    }
    return summary();
  }

 private:
  Rank& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }

  void start_outer(std::size_t next) {
    for (Rank& rank : ranks_) {
      const RouteStep& first = rank.route.steps[next];
      if (first.sends_block_to_node) {
        at(rank.route.next_node).node_block_arrives = rank.send_to_node(rank.clock, group_.block_bytes(first.owner));
      }
    }
  }

  void step(std::size_t index) {
    std::vector<double> block_arrives(ranks_.size(), 0);
    std::vector<double> sum_arrives(ranks_.size(), 0);
    for (Rank& rank : ranks_) {
      const RouteStep& step = rank.route.steps[index];
      const double begin = rank.clock;
      if (step.sends_block) {
        block_arrives[static_cast<std::size_t>(rank.route.next_local)] =
            rank.send_along_ring(begin, group_.block_bytes(step.owner));
      }
      rank.clock += rank.step_seconds[index];
      if (step.receives_sum) {
        rank.clock = std::max(rank.clock, rank.sum_arrives);
      }
      if (step.sends_sum) {
        sum_arrives[static_cast<std::size_t>(rank.route.next_local)] =
            rank.send_along_ring(rank.clock, group_.sum_bytes(step.owner));
      }
    }
    for (std::size_t n = 0; n < ranks_.size(); ++n) {
      ranks_[n].clock = std::max(ranks_[n].clock, block_arrives[n]);
      ranks_[n].sum_arrives = sum_arrives[n];
    }
  }

  void finish_outer(std::size_t outer) {
    std::vector<double> collected(ranks_.size(), 0);
    for (Rank& rank : ranks_) {
      const RouteCollect& collect = rank.route.collects[outer];
      rank.clock += group_.topology.nodes == 1 ? rank.closing_seconds : 0;
      if (collect.receives_sum) {
        rank.clock = std::max(rank.clock, rank.sum_arrives);
      }
      if (collect.receives_collected) {
        rank.clock = std::max(rank.clock, rank.collected_arrives);
      }
      if (collect.sends_collected) {
        collected[static_cast<std::size_t>(rank.route.next_node)] =
            rank.send_to_node(rank.clock, group_.sum_bytes(collect.owner));
      }
      rank.clock = std::max(rank.clock, rank.node_block_arrives);
    }
    for (std::size_t n = 0; n < ranks_.size(); ++n) {
      ranks_[n].collected_arrives = collected[n];
    }
  }

  Prediction summary() const {
    Prediction prediction;
    for (const Rank& rank : ranks_) {
      prediction.seconds = std::max(prediction.seconds, rank.clock);
      prediction.compute_seconds = std::max(prediction.compute_seconds, rank.compute_seconds);
      prediction.node_seconds = std::max(prediction.node_seconds, rank.node_link.used());
      prediction.network_seconds = std::max(prediction.network_seconds, rank.network_link.used());
      prediction.bytes_sent = std::max(prediction.bytes_sent, rank.bytes_sent);
    }
    const std::array<std::pair<double, const char*>, 3> terms{{{prediction.compute_seconds, "compute"},
                                                               {prediction.node_seconds, "node link"},
                                                               {prediction.network_seconds, "network"}}};
    prediction.binding = std::max_element(terms.begin(), terms.end(), [](const auto& a, const auto& b) {
                           return a.first < b.first;
                         })->second;
    return prediction;
  }

  const internal::RingGroup& group_;
  std::vector<Rank> ranks_;
};

void require_positive(const char* name, double value) {
  if (!(value > 0)) {
    internal::fail_argument(name, value, "positive numbers");
  }
}

}  // namespace

Prediction predict(const Problem& whole, Pass pass, int ranks, const DistributedOptions& options,
                   const ClusterRates& rates) {
  require_positive("flops_per_second", rates.flops_per_second);
  require_positive("node_bytes_per_second", rates.node_bytes_per_second);
  require_positive("network_bytes_per_second", rates.network_bytes_per_second);
  const internal::RingGroup group(whole, pass, ranks, options);
  const int in_node = options.links.ranks_per_node == 0 ? ranks : options.links.ranks_per_node;
  return Simulation(group, in_node, rates).run();
}

}  // namespace tessera
