#include "cuda/sm90/bwd/order_plan.h"

#include <algorithm>

#include "core/fail.h"

namespace tessera::internal {

namespace {

struct Deal {
  std::int64_t apart, group, groups;
  std::int64_t rounds;  // tiles of keys that the busiest block has of each head of a unit
};

// A group takes the tiles of a head in `spans` times `apart` chunks.
Deal deal(const DealProblem& problem, std::int64_t units, std::int64_t apart, std::int64_t spans) {
  const std::int64_t group = ceil_div(problem.tiles_of_head, apart * spans);
  const std::int64_t groups = std::min(units, problem.multiprocessors / group);
  return {apart, group, groups, ceil_div(units, groups) * apart * spans};
}

// In as few chunks as a group of all multiprocessors has, or in some more, where that leaves fewer of them without a group.
Deal deal(const DealProblem& problem, std::int64_t units, std::int64_t apart) {
  constexpr std::int64_t kMoreSpans = 7;
  constexpr std::int64_t kFewestBlocks = 16;  // of a group: each chunk reads Q, dO and dQ of the head
  const std::int64_t fewest = ceil_div(problem.tiles_of_head, apart * problem.multiprocessors);
  Deal best = deal(problem, units, apart, fewest);
  for (std::int64_t spans = fewest + 1; spans <= fewest + kMoreSpans; ++spans) {
    const Deal next = deal(problem, units, apart, spans);
    if (next.group >= kFewestBlocks && next.rounds < best.rounds) {
      best = next;
    }
  }
  return best;
}

// Twice the chunks are twice the groups and heads at a time, whose tensors are to stay in the L2 cache. Where a head has few tiles
// of keys, each byte is used less often and half the cache is too much.
bool fits_cache(const DealProblem& problem, const Deal& deal) {
  constexpr std::int64_t kManyTiles = 16;
  const std::int64_t most = std::int64_t{problem.tiles_of_head >= kManyTiles ? 36 : 18} << 20;
  return deal.groups * (problem.paired ? 2 : 1) <= most / problem.head_bytes;
}

// A group takes every tile, or every other one, which keeps its blocks apart.
Deal deal(const DealProblem& problem, std::int64_t units) {
  constexpr std::int64_t kApart = 2;
  const Deal close = deal(problem, units, 1);
  if (problem.tiles_of_head < kApart) {
    return close;
  }
  const Deal apart = deal(problem, units, kApart);
  const bool long_head = problem.tiles_of_head > problem.multiprocessors;
  const bool wanted = long_head ? problem.two_steps >= kApart : fits_cache(problem, apart);
  return wanted && apart.rounds <= close.rounds ? apart : close;
}

}  // namespace

std::int64_t deal_to_groups(const DealProblem& problem, sm90::BackwardOrder& order) {
  constexpr std::int64_t kSteps = 4;  // between blocks that go round; two are enough for turns, but not for slow blocks
  Deal best = deal(problem, problem.paired ? ceil_div(problem.lines, std::int64_t{2}) : problem.lines);
  order.paired = problem.paired ? 1 : 0;
  order.folded = 0;
  if (problem.paired && problem.tiles_of_head > problem.multiprocessors) {
    DealProblem half = problem;
    half.tiles_of_head = ceil_div(problem.tiles_of_head, std::int64_t{2});
    const Deal folded = deal(half, problem.lines);
    if (folded.rounds < best.rounds) {  // the last head is without a second one
      best = folded;
      order.folded = 1;
    }
  }
  order.group = static_cast<std::int32_t>(best.group);
  order.apart = static_cast<std::int32_t>(best.apart);
  order.span = static_cast<std::int32_t>(best.apart * best.group);
  order.spread = static_cast<std::int32_t>(std::min(problem.query_tiles, kSteps * best.group));
  return best.groups * best.group;
}

}  // namespace tessera::internal
