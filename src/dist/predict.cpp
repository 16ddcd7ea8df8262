// The same route that ranks follow, on a clock: each step waits for what DistributedPlan waits for.
#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/fail.h"
#include "dist/fuse.h"
#include "dist/rank_work.h"
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
    const double seconds = seconds_of(bytes);
    free_ = std::max(free_, ready) + seconds;
    used_ += seconds;
    return free_;
  }
  double seconds_of(std::int64_t bytes) const {
    return message_seconds_ + static_cast<double>(bytes) / bytes_per_second_;
  }
  double used() const { return used_; }

 private:
  double bytes_per_second_;
  double message_seconds_;
  double free_ = 0;
  double used_ = 0;
};

// That attend, over all sequences and query heads.
double pairs(const internal::SubProblem& part) {
  const Problem& problem = part.problem;
  if (problem.mask.has_blocks()) {
    TileSchedule::Counts tiles;
    internal::count({part}, tiles);
    return static_cast<double>(tiles.pairs);
  }
  const bool alike = !problem.mask.has_segments();
  double pairs = 0;
  if (alike && !problem.mask.has_band()) {
    pairs = static_cast<double>(problem.seq_q) * static_cast<double>(problem.seq_k);
  } else {
    for (std::int64_t b = 0; b < (alike ? 1 : problem.batch); ++b) {
      const TileSchedule schedule = problem.schedule(b, 1, 1);
      for (std::int64_t query = 0; query < problem.seq_q; ++query) {
        pairs += static_cast<double>(schedule.keys_of(query).size());
      }
    }
  }
  return pairs * static_cast<double>(alike ? problem.heads_q * problem.batch : problem.heads_q);
}

// Of the kernel that is most like the part: masked as it is, if there is one, and then the nearest in length.
double rate_of(const internal::SubProblem& part, const ClusterRates& rates) {
  if (rates.kernels.empty()) {
    return rates.flops_per_second;
  }
  const bool masked = !(part.problem.mask == Mask::none());
  const auto distance = [&](const KernelRate& kernel) {
    const double queries = std::log(static_cast<double>(kernel.queries) / static_cast<double>(part.problem.seq_q));
    const double keys = std::log(static_cast<double>(kernel.keys) / static_cast<double>(part.problem.seq_k));
    return std::pair(kernel.masked != masked, std::abs(queries) + std::abs(keys));
  };
  return std::min_element(rates.kernels.begin(), rates.kernels.end(),
                          [&](const KernelRate& a, const KernelRate& b) { return distance(a) < distance(b); })
      ->flops_per_second;
}

// Bytes that sums of partial results move: see Gathered. On the CPU each result is float32 and is added at once; on a GPU
// results are written in 16 bits, wait in slots, and are read when these are full or the pass ends.
class SumBytes {
 public:
  SumBytes(const internal::RingGroup& group, bool on_cpu)
      : whole_(group.whole),
        backward_(group.pass == Pass::backward),
        on_cpu_(on_cpu),
        slots_(internal::staying_slots(group, on_cpu ? DeviceKind::cpu : DeviceKind::cuda)),
        term_(on_cpu ? kFloat : static_cast<double>(dtype_bytes(whole_.dtype))),
        output_(static_cast<double>(dtype_bytes(whole_.out_dtype()))) {}

  // Before the first step: dO and O for D.
  double begin(const Problem& own) const { return backward_ ? elements(own, true, whole_.dim_v) * 2 * output_ : 0; }
  // Of the result of one part that stays, `before` others were there.
  double stays(const Problem& part, bool queries, int before) const {
    const bool waits = before < slots_;
    return waits ? 0 : rows(part, queries) * (term_ + (on_cpu_ ? 2 * kFloat : kFloat));
  }
  // This rank's share of what travels and what has come with the block, into what goes on.
  double travels(const Problem& part, bool queries, bool arrives) const {
    if (!backward_ || (on_cpu_ && !arrives)) {
      return 0;
    }
    return rows(part, queries) * (term_ + kFloat + (arrives ? kFloat : 0));
  }
  // What stays, into the output.
  double end(const Problem& own, bool queries, int terms) const {
    const double read = on_cpu_ ? kFloat : terms <= slots_ ? terms * term_ : kFloat + term_;
    return rows(own, queries) * (read + output_);
  }
  // The gradients that have come home and the own share of them, into the output.
  double home(const Problem& own, bool queries) const {
    return backward_ ? rows(own, queries) * ((on_cpu_ ? 3 * kFloat : 0) + term_ + kFloat + output_) : 0;
  }

 private:
  static constexpr double kFloat = 4;

  static double elements(const Problem& part, bool queries, std::int64_t dim) {
    return static_cast<double>(part.batch * (queries ? part.seq_q * part.heads_q : part.seq_k * part.heads_kv) * dim);
  }
  double rows(const Problem& part, bool queries) const {
    return queries ? elements(part, true, backward_ ? whole_.dim_qk : whole_.dim_v)
                   : elements(part, false, whole_.dim_qk + whole_.dim_v);
  }

  const Problem& whole_;
  bool backward_;
  bool on_cpu_;
  int slots_;
  double term_;
  double output_;
};

struct Rank {
  Route route;
  std::vector<double> step_seconds;
  double begin_seconds = 0;
  double closing_seconds = 0;  // of the own block, while its gradients come home
  double end_seconds = 0;
  double clock = 0;
  double compute_seconds = 0;
  std::int64_t bytes_sent = 0;
  Link node_link;
  Link network_link;
  bool ring_crosses_nodes = false;  // a flat ring over several nodes
  double sum_arrives = 0;           // of this step's block, from the previous local rank
  double back_arrives = 0;          // of the own block, to be awaited beside the next node's first block
  double node_block_arrives = 0;
  double collected_arrives = 0;

  Rank(Route route_, const ClusterRates& rates)
      : route(std::move(route_)),
        node_link(rates.node_bytes_per_second, rates.message_seconds),
        network_link(rates.network_bytes_per_second, rates.message_seconds) {}

  const Link& link(bool between_nodes) const { return between_nodes ? network_link : node_link; }
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
  Simulation(const internal::RingGroup& group, int ranks_per_node, const ClusterRates& rates)
      : group_(group), cpu_ranks_(rates.cpu_ranks) {
    for (int rank = 0; rank < group.topology.ranks(); ++rank) {
      Rank& added = ranks_.emplace_back(group.route(rank), rates);
      added.ring_crosses_nodes = rank / ranks_per_node != added.route.next_local / ranks_per_node;
      add_steps(added, rates);
    }
  }

  Prediction run() {
    std::size_t next = 0;
    for (Rank& rank : ranks_) {
      rank.clock = rank.begin_seconds;
    }
    for (int outer = 0; outer < group_.topology.nodes; ++outer) {
      start_outer(next);
      for (int inner = 0; inner < group_.topology.locals; ++inner, ++next) {
        step(next);
      }
      finish_outer(static_cast<std::size_t>(outer));
    }
    for (Rank& rank : ranks_) {
      rank.clock += group_.topology.nodes > 1 ? rank.closing_seconds : 0;
      if (rank.route.home_from_node) {
        await(rank, rank.collected_arrives, group_.sum_bytes(rank.route.rank), true);
      }
      rank.clock += rank.end_seconds;
    }
    return summary();
  }

 private:
  Rank& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }

  void add_steps(Rank& rank, const ClusterRates& rates) {
    const internal::RingGroup& group = group_;
    const SumBytes bytes(group, cpu_ranks_);
    const auto sum_seconds = [&](double moved) {
      return rates.memory_bytes_per_second > 0 ? moved / rates.memory_bytes_per_second : 0;
    };
    Problem own = group.whole;
    own.seq_q = group.query_layout.tokens(rank.route.rank);
    own.seq_k = group.key_layout.tokens(rank.route.rank);
    int computed = 0;
    for (const RouteStep& step : rank.route.steps) {
      const bool is_own = step.owner == rank.route.rank;
      double kernels = 0;
      double sums = 0;
      for (const internal::SubProblem& part : internal::fused_parts(group, rank.route.rank, step.owner)) {
        kernels += pairs(part) * internal::flops_per_pair(group.whole, group.pass) / rate_of(part, rates);
        sums += bytes.stays(part.problem, !group.queries_travel, computed);
        sums += is_own ? 0 : bytes.travels(part.problem, group.queries_travel, step.receives_sum);
      }
      computed += step.computes ? 1 : 0;
      rank.compute_seconds += kernels;
      rank.step_seconds.push_back(kernels + sum_seconds(sums) + (step.computes ? rates.step_seconds : 0));
    }
    if (group.pass == Pass::backward && group.topology.ranks() > 1 && group.whole.heads_kv > 1) {
      rank.closing_seconds = rank.step_seconds.front() / 2;
      rank.step_seconds.front() -= rank.closing_seconds;
    }
    rank.begin_seconds = sum_seconds(bytes.begin(own));
    rank.end_seconds =
        sum_seconds(bytes.end(own, !group.queries_travel, computed) + bytes.home(own, group.queries_travel));
  }

  // Until a message of so many bytes, which came at `arrives`, is there.
  void await(Rank& rank, double arrives, std::int64_t bytes, bool between_nodes) {
    const double copying = cpu_ranks_ ? rank.link(between_nodes).seconds_of(bytes) : 0;
    rank.clock = std::max(rank.clock + copying, arrives);
  }

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
      if (rank.back_arrives > 0) {
        await(rank, std::exchange(rank.back_arrives, 0), group_.sum_bytes(rank.route.rank), rank.ring_crosses_nodes);
      }
      if (step.receives_sum) {
        await(rank, rank.sum_arrives, group_.sum_bytes(step.owner), rank.ring_crosses_nodes);
      }
      if (step.sends_sum) {
        sum_arrives[static_cast<std::size_t>(rank.route.next_local)] =
            rank.send_along_ring(rank.clock, group_.sum_bytes(step.owner));
      }
    }
    for (std::size_t n = 0; n < ranks_.size(); ++n) {
      Rank& rank = ranks_[n];
      const RouteStep& step = rank.route.steps[index];
      if (step.receives_block) {
        await(rank, block_arrives[n], group_.block_bytes(step.next_owner), rank.ring_crosses_nodes);
      }
      rank.sum_arrives = sum_arrives[n];
    }
  }

  void finish_outer(std::size_t outer) {
    std::vector<double> collected(ranks_.size(), 0);
    for (Rank& rank : ranks_) {
      const RouteCollect& collect = rank.route.collects[outer];
      rank.clock += group_.topology.nodes == 1 ? rank.closing_seconds : 0;
      if (collect.receives_sum && collect.owner == rank.route.rank && group_.topology.nodes > 1) {
        rank.back_arrives = rank.sum_arrives;
      } else if (collect.receives_sum) {
        await(rank, rank.sum_arrives, group_.sum_bytes(collect.owner), rank.ring_crosses_nodes);
      }
      if (collect.receives_collected) {
        await(rank, rank.collected_arrives, group_.sum_bytes(collect.owner), true);
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
  bool cpu_ranks_;
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
  for (const KernelRate& kernel : rates.kernels) {
    require_positive("kernels: flops_per_second", kernel.flops_per_second);
    require_positive("kernels: queries * keys", static_cast<double>(kernel.queries) * static_cast<double>(kernel.keys));
  }
  const internal::RingGroup group(whole, pass, ranks, options);
  const int in_node = options.links.ranks_per_node == 0 ? ranks : options.links.ranks_per_node;
  return Simulation(group, in_node, rates).run();
}

}  // namespace tessera
