// Which messages one rank sends and receives in one pass: pure arithmetic, the same on every rank.
//
// Ranks are nodes x locals. In outer step o and inner step i, rank (n, l) works on the block that (n - o, l - i) owns. A
// block goes around the inner ring of each node, and once around the outer ring, from the rank it comes to first in one node to
// the same rank of the next. With one node this is the plain ring.
//
// Gradients of a travelling block follow it. The rank that a block comes to first in a node collects what that node adds (its
// owner, at home): inner step 1 starts a sum, the last one sends it on to the collector. Collected sums go around the outer
// ring, and the last hop is home. So gradients make as many hops as blocks: ranks - 1.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace tessera::internal {

struct Topology {
  int nodes = 1;
  int locals = 1;

  int ranks() const { return nodes * locals; }
  int rank(int node, int local) const { return (node + nodes) % nodes * locals + (local + locals) % locals; }
  int node_of(int rank) const { return rank / locals; }
  int local_of(int rank) const { return rank % locals; }
};

// For each (rank, owner of a travelling block): whether the rank has anything to compute with the block.
class Needs {
 public:
  Needs(int ranks, const std::function<bool(int rank, int owner)>& needs);
  bool operator()(int rank, int owner) const {
    return needed_[static_cast<std::size_t>(rank) * static_cast<std::size_t>(ranks_) + static_cast<std::size_t>(owner)];
  }

 private:
  int ranks_;
  std::vector<bool> needed_;
};

// What one rank does in one (outer, inner) step. Peers are in order: sends go to the next rank of the ring, receives come
// from the previous one. Each flag says whether the message exists.
struct RouteStep {
  int outer = 0;
  int inner = 0;
  int owner = 0;  // of the block that is worked on
  bool computes = false;
  // Blocks.
  bool sends_block = false;             // this block to the next local rank
  bool receives_block = false;          // the next step's block
  int next_owner = 0;                   // of that one
  bool sends_block_to_node = false;     // at inner step 0: this block to the next node
  bool receives_block_of_node = false;  // at inner step 0: the block of the next outer step's inner step 0
  int next_node_owner = 0;
  // Gradients.
  bool receives_sum = false;  // of this block, from the previous local rank
  bool sends_sum = false;     // of this block, to the next local rank
};

// What happens to gradients at the end of an outer step; its block is that of inner step 0.
struct RouteCollect {
  int owner = 0;
  bool receives_sum = false;        // from the previous local rank
  bool receives_collected = false;  // from the previous node
  bool sends_collected = false;     // to the next node
};

struct Route {
  Topology topology;
  int rank = 0;
  int next_local = 0, previous_local = 0, next_node = 0, previous_node = 0;
  std::vector<RouteStep> steps;        // outer-major
  std::vector<RouteCollect> collects;  // one for each outer step
  bool home_from_node = false;         // the collected sum of this rank's own block comes from the previous node
};

// `gradients`: of the travelling blocks, too.
Route make_route(const Topology& topology, int rank, const Needs& needs, bool gradients);

// Messages that carry blocks and those that carry gradients, by the owner of the block and by the kind of link.
struct RouteTokens {
  std::int64_t blocks_in_node = 0;  // tokens sent
  std::int64_t blocks_to_node = 0;
  std::int64_t sums_in_node = 0;
  std::int64_t sums_to_node = 0;
};
RouteTokens tokens_sent(const Route& route, const std::function<std::int64_t(int owner)>& tokens_of);

}  // namespace tessera::internal
