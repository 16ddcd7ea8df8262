// Everything about one rank's pass that follows from the arguments alone: layouts, schedule, route, parts of each step.
#pragma once

#include <vector>

#include "dist/block.h"
#include "dist/route.h"
#include "dist/sub_problem.h"
#include "tessera/distributed.h"

namespace tessera::internal {

// What all ranks have in common. Throws Error for a problem or options that cannot be.
struct RingGroup {
  RingGroup(const Problem& problem, Pass pass_, int ranks, const DistributedOptions& options);

  Problem whole;
  Pass pass;
  SequenceLayout query_layout;
  SequenceLayout key_layout;
  Topology topology;
  RingSchedule schedule = RingSchedule::ring;
  bool queries_travel = false;
  TokenBytes token_bytes;

  bool attends(int query_rank, int key_rank) const { return attends_(query_rank, key_rank); }
  // For a rank at work on the block that another one owns.
  int query_rank(int rank, int owner) const { return queries_travel ? owner : rank; }
  int key_rank(int rank, int owner) const { return queries_travel ? rank : owner; }

  Route route(int rank) const;
  std::vector<SubProblem> parts(int rank, int owner) const;
  // Of the message about a rank's block, and of its gradients; 0 in a forward pass.
  std::int64_t block_bytes(int owner) const;
  std::int64_t sum_bytes(int owner) const;
  DistributedFacts facts(int rank) const;

 private:
  std::int64_t bytes_sent_by_all(bool queries_would_travel) const;
  Route route(int rank, bool queries_would_travel, bool gradients) const;

  Needs attends_;
};

// Adds what the parts of one step visit, in tiles of 64 x 64.
void count(const std::vector<SubProblem>& parts, TileSchedule::Counts& tiles);
// FLOPs of a (query, key) pair: 2 (dim_qk + dim_v) forward, 2 (3 dim_qk + 2 dim_v) backward.
double flops_per_pair(const Problem& problem, Pass pass);

}  // namespace tessera::internal
