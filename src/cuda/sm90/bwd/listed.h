// What the backward kernel walks under a listed mask, see listed_plan.h.
#pragma once

#include "cuda/tile/listed.h"

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

struct ListedBackward {
  const ListedTask* tasks;  // that of round r and block b is number r * blocks + b
  const ListedTerm* terms;
  const std::uint32_t* bits;
};

}  // namespace tessera::sm90
