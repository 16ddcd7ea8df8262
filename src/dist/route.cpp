#include "dist/route.h"

namespace tessera::internal {

namespace {

// Where a block is in which step, and what it still has to do there.
class Journey {
 public:
  Journey(const Topology& topology, const Needs& needs, int owner)
      : topology_(topology), needs_(needs), owner_(owner) {}

  bool needed_at(int outer, int inner) const { return needs_(rank_at(outer, inner), owner_); }
  // Whether any rank of this inner ring needs it in a step of [begin, end).
  bool needed_within(int outer, int begin, int end) const {
    for (int inner = begin; inner < end; ++inner) {
      if (needed_at(outer, inner)) {
        return true;
      }
    }
    return false;
  }
  bool needed_from_inner(int outer, int inner) const { return needed_within(outer, inner, topology_.locals); }
  bool needed_from_outer(int outer) const {
    for (int o = outer; o < topology_.nodes; ++o) {
      if (needed_from_inner(o, 0)) {
        return true;
      }
    }
    return false;
  }
  // Whether there is a sum once inner step `inner` is done.
  bool has_sum(int outer, int inner) const { return needed_within(outer, 1, inner + 1); }
  // Whether nodes up to outer step `outer` have collected anything for the way home.
  bool has_collected(int outer) const {
    for (int o = 1; o <= outer; ++o) {
      if (needed_from_inner(o, 0)) {
        return true;
      }
    }
    return false;
  }

 private:
  int rank_at(int outer, int inner) const {
    return topology_.rank(topology_.node_of(owner_) + outer, topology_.local_of(owner_) + inner);
  }

  const Topology& topology_;
  const Needs& needs_;
  int owner_;
};

}  // namespace

Needs::Needs(int ranks, const std::function<bool(int rank, int owner)>& needs)
    : ranks_(ranks), needed_(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks)) {
  std::size_t at = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (int owner = 0; owner < ranks; ++owner) {
      needed_[at++] = needs(rank, owner);
    }
  }
}

Route make_route(const Topology& topology, int rank, const Needs& needs, bool gradients) {
  const int node = topology.node_of(rank);
  const int local = topology.local_of(rank);
  const int last_inner = topology.locals - 1;
  const int last_outer = topology.nodes - 1;
  Route route{topology,
              rank,
              topology.rank(node, local + 1),
              topology.rank(node, local - 1),
              topology.rank(node + 1, local),
              topology.rank(node - 1, local),
              {},
              {},
              gradients && Journey(topology, needs, rank).has_collected(last_outer)};
  const auto journey = [&](int owner) { return Journey(topology, needs, owner); };
  for (int outer = 0; outer <= last_outer; ++outer) {
    for (int inner = 0; inner <= last_inner; ++inner) {
      RouteStep step;
      step.outer = outer;
      step.inner = inner;
      step.owner = topology.rank(node - outer, local - inner);
      const Journey block = journey(step.owner);
      step.computes = block.needed_at(outer, inner);
      if (inner < last_inner) {
        step.next_owner = topology.rank(node - outer, local - inner - 1);
        step.sends_block = block.needed_from_inner(outer, inner + 1);
        step.receives_block = journey(step.next_owner).needed_from_inner(outer, inner + 1);
      }
      if (inner == 0 && outer < last_outer) {
        step.next_node_owner = topology.rank(node - outer - 1, local);
        step.sends_block_to_node = block.needed_from_outer(outer + 1);
        step.receives_block_of_node = journey(step.next_node_owner).needed_from_outer(outer + 1);
      }
      if (gradients && inner >= 1) {
        step.receives_sum = block.has_sum(outer, inner - 1);
        step.sends_sum = block.has_sum(outer, inner);
      }
      route.steps.push_back(step);
    }
    RouteCollect collect;
    collect.owner = topology.rank(node - outer, local);
    if (gradients) {
      const Journey block = journey(collect.owner);
      collect.receives_sum = block.has_sum(outer, last_inner);
      collect.receives_collected = outer >= 2 && block.has_collected(outer - 1);
      collect.sends_collected = outer >= 1 && block.has_collected(outer);
    }
    route.collects.push_back(collect);
  }
  return route;
}

RouteTokens tokens_sent(const Route& route, const std::function<std::int64_t(int owner)>& tokens_of) {
  RouteTokens sent;
  for (const RouteStep& step : route.steps) {
    const std::int64_t tokens = tokens_of(step.owner);
    sent.blocks_in_node += step.sends_block ? tokens : 0;
    sent.blocks_to_node += step.sends_block_to_node ? tokens : 0;
    sent.sums_in_node += step.sends_sum ? tokens : 0;
  }
  for (const RouteCollect& collect : route.collects) {
    sent.sums_to_node += collect.sends_collected ? tokens_of(collect.owner) : 0;
  }
  return sent;
}

}  // namespace tessera::internal
