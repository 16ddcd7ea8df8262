// What the backward kernel walks under a listed mask, see listed_plan.h.
#pragma once

#include "cuda/tile/listed.h"
#include "cuda/tile/work.h"

namespace tessera::sm90 {

// A visit of a tile of keys to a tile of queries, and the term of dQ that it adds.
struct alignas(16) ListedTerm {
  std::int32_t tile;    // of queries
  std::int32_t bits;    // as in ListedVisit, by keys
  std::int32_t turn;    // terms of this tile of queries before this one
  std::int32_t member;  // of the query heads that share the key head
};

// A tile of keys and its terms, in the order in which they are computed.
struct ListedTask {
  std::int32_t number;  // of the tile, heads first; -1: none
  std::int32_t begin, end;
};

// The sum of dQ of a tile of queries.
struct ListedSum {
  std::int32_t tile;   // among those of all rows of statistics
  std::int32_t terms;  // of which it is complete
  std::int32_t batch, head;
  std::int32_t token;  // of its first query, on the token axis
  std::int32_t rows;   // queries in it
};

struct ListedBackward {
  const ListedTask* tasks;  // that of round r and block b is number r * blocks + b
  const ListedTerm* terms;
  const std::uint32_t* bits;
  // What blocks round that have no more tiles of keys, in this order; none where a kernel behind this one does it.
  const ListedSum* sums;
  std::int32_t sum_count;
  void* dq;
  Strides dq_strides;
};

}  // namespace tessera::sm90
