// How many blocks work on a head of the backward pass at a time.
#pragma once

#include <cstdint>

#include "cuda/sm90/bwd/order.h"

namespace tessera::internal {

struct DealProblem {
  std::int64_t lines;          // (batch, key head) pairs, at least 1
  std::int64_t tiles_of_head;  // of keys, at least 1
  std::int64_t head_bytes;     // of Q, dO and dQ in float32 of a query head, which the tiles of keys of a head share
  std::int64_t query_tiles;    // at least 1
  bool paired;
  std::int64_t two_steps;  // tiles of keys that are as long as two tiles of queries, rounded up
  std::int64_t multiprocessors;
};

// Sets all but `way` of what deals tiles; returns the number of blocks, in whole groups.
std::int64_t deal_to_groups(const DealProblem& problem, sm90::BackwardOrder& order);

}  // namespace tessera::internal
