#include "dist/ring_program.h"

#include "core/fail.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kCountedTile = 64;

Topology topology_of(int ranks, const DistributedOptions& options) {
  const int locals = options.links.ranks_per_node == 0 ? ranks : options.links.ranks_per_node;
  if (locals < 1 || ranks % locals != 0) {
    fail_argument("links.ranks_per_node", std::int64_t{locals},
                  "divisors of the number of ranks, " + std::to_string(ranks));
  }
  const bool flat = options.schedule == RingSchedule::ring || options.schedule == RingSchedule::burst;
  return flat ? Topology{1, ranks} : Topology{ranks / locals, locals};
}

Problem checked(const Problem& problem, int ranks, const DistributedOptions& options) {
  validate(problem);
  Problem whole = lower_mask_function(problem, options.plan.threads);  // a mask function spreads as its blocks do
  require_distributable(whole);
  if (options.ranks != 0 && options.ranks != ranks) {
    fail_argument("ranks", std::int64_t{options.ranks},
                  "the communicator's number of ranks, " + std::to_string(ranks) + ", or 0");
  }
  return whole;
}

}  // namespace

RingGroup::RingGroup(const Problem& problem, Pass pass_, int ranks, const DistributedOptions& options)
    : whole(checked(problem, ranks, options)),
      pass(pass_),
      query_layout(options.layout, problem.seq_q, ranks),
      key_layout(options.layout, problem.seq_k, ranks),
      topology(topology_of(ranks, options)),
      token_bytes(problem),
      attends_(ranks, [this](int query_rank, int key_rank) {
        return !sub_problems(whole, query_layout, query_rank, key_layout, key_rank).empty();
      }) {
  const bool burst_sends_less = bytes_sent_by_all(true) < bytes_sent_by_all(false);
  const bool burst =
      options.schedule == RingSchedule::burst || (options.schedule != RingSchedule::ring && burst_sends_less);
  const bool nested = options.schedule == RingSchedule::double_ring || topology.nodes > 1;
  schedule = nested ? RingSchedule::double_ring : burst ? RingSchedule::burst : RingSchedule::ring;
  queries_travel = burst && pass == Pass::backward;
}

Route RingGroup::route(int rank, bool queries_would_travel, bool gradients) const {
  const Needs needs(topology.ranks(), [&](int at, int owner) {
    return queries_would_travel ? attends_(owner, at) : attends_(at, owner);
  });
  return make_route(topology, rank, needs, gradients);
}

Route RingGroup::route(int rank) const { return route(rank, queries_travel, pass == Pass::backward); }

// In a backward pass, by which the schedules differ.
std::int64_t RingGroup::bytes_sent_by_all(bool queries_would_travel) const {
  const SequenceLayout& layout = queries_would_travel ? query_layout : key_layout;
  std::int64_t bytes = 0;
  for (int rank = 0; rank < topology.ranks(); ++rank) {
    const RouteTokens sent = tokens_sent(route(rank, queries_would_travel, true),
                                         [&](int owner) { return whole.batch * layout.tokens(owner); });
    bytes +=
        (sent.blocks_in_node + sent.blocks_to_node) * (queries_would_travel ? token_bytes.queries : token_bytes.keys);
    bytes += (sent.sums_in_node + sent.sums_to_node) *
             (queries_would_travel ? token_bytes.query_gradients : token_bytes.key_gradients);
  }
  return bytes;
}

std::vector<SubProblem> RingGroup::parts(int rank, int owner) const {
  return sub_problems(whole, query_layout, query_rank(rank, owner), key_layout, key_rank(rank, owner));
}

std::int64_t RingGroup::block_bytes(int owner) const {
  return whole.batch * (queries_travel ? query_layout.tokens(owner) * token_bytes.queries
                                       : key_layout.tokens(owner) * token_bytes.keys);
}

std::int64_t RingGroup::sum_bytes(int owner) const {
  if (pass == Pass::forward) {
    return 0;
  }
  return whole.batch * (queries_travel ? query_layout.tokens(owner) * token_bytes.query_gradients
                                       : key_layout.tokens(owner) * token_bytes.key_gradients);
}

DistributedFacts RingGroup::facts(int rank) const {
  DistributedFacts facts;
  facts.schedule = schedule;
  facts.queries_travel = queries_travel;
  facts.ranks = topology.ranks();
  facts.ranks_per_node = topology.locals;
  facts.queries = query_layout.tokens(rank);
  facts.keys = key_layout.tokens(rank);
  for (const RouteStep& step : route(rank).steps) {
    facts.steps_computed += step.computes ? 1 : 0;
    facts.bytes_sent += (step.sends_block ? block_bytes(step.owner) : 0) + (step.sends_sum ? sum_bytes(step.owner) : 0);
    facts.bytes_sent_to_nodes += step.sends_block_to_node ? block_bytes(step.owner) : 0;
    count(parts(rank, step.owner), facts.tiles);
  }
  for (const RouteCollect& collect : route(rank).collects) {
    facts.bytes_sent_to_nodes += collect.sends_collected ? sum_bytes(collect.owner) : 0;
  }
  facts.bytes_sent += facts.bytes_sent_to_nodes;
  facts.flops_of_pairs = static_cast<double>(facts.tiles.pairs) * flops_per_pair(whole, pass);
  return facts;
}

void count(const std::vector<SubProblem>& parts, TileSchedule::Counts& tiles) {
  for (const SubProblem& part : parts) {
    const Problem& problem = part.problem;
    const bool alike = problem.sequences_are_alike();
    const std::int64_t schedules = problem.schedules_per_sequence();
    const std::int64_t times = problem.heads_q / schedules * (alike ? problem.batch : 1);
    for (std::int64_t b = 0; b < (alike ? 1 : problem.batch); ++b) {
      for (std::int64_t head = 0; head < schedules; ++head) {
        const TileSchedule::Counts counts = problem.schedule(b, kCountedTile, kCountedTile, head).count();
        tiles.full += times * counts.full;
        tiles.partial += times * counts.partial;
        tiles.skipped += times * counts.skipped;
        tiles.pairs += times * counts.pairs;
      }
    }
  }
}

double flops_per_pair(const Problem& problem, Pass pass) {
  const auto qk = static_cast<double>(problem.dim_qk);
  const auto v = static_cast<double>(problem.dim_v);
  return pass == Pass::forward ? 2 * (qk + v) : 2 * (3 * qk + 2 * v);
}

}  // namespace tessera::internal
