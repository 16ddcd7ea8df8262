#include "cuda/sm90/bwd/order_plan.h"

#include <algorithm>

#include "core/fail.h"

namespace tessera::internal {

namespace {

struct Deal {
  std::int64_t chunks, group, groups;
  std::int64_t rounds;  // tiles of keys that the busiest block has of each head of a unit
};

Deal deal(const DealProblem& problem, std::int64_t units, std::int64_t chunks) {
  const std::int64_t group = ceil_div(problem.tiles_of_head, chunks);
  const std::int64_t groups = std::min(units, problem.multiprocessors / group);
  return {chunks, group, groups, ceil_div(units, groups) * chunks};
}

// Twice the chunks are twice the groups and heads at a time, whose tensors are to stay in the L2 cache. Where a head has few tiles
// of keys, each byte is used less often and half the cache is too much.
bool fits_cache(const DealProblem& problem, const Deal& deal) {
  constexpr std::int64_t kManyTiles = 16;
  const std::int64_t most = std::int64_t{problem.tiles_of_head >= kManyTiles ? 36 : 18} << 20;
  return deal.groups * (problem.paired ? 2 : 1) <= most / problem.head_bytes;
}

}  // namespace

std::int64_t deal_to_groups(const DealProblem& problem, sm90::BackwardOrder& order) {
  constexpr std::int64_t kChunks = 2;  // which keep the blocks of a group apart
  const std::int64_t units = problem.paired ? ceil_div(problem.lines, std::int64_t{2}) : problem.lines;
  Deal best = deal(problem, units, ceil_div(problem.tiles_of_head, problem.multiprocessors));
  if (best.chunks < kChunks && problem.tiles_of_head >= kChunks) {
    const Deal apart = deal(problem, units, kChunks);
    if (apart.rounds <= best.rounds && fits_cache(problem, apart)) {
      best = apart;
    }
  }
  order.group = static_cast<std::int32_t>(best.group);
  order.chunks = static_cast<std::int32_t>(best.chunks);
  order.paired = problem.paired ? 1 : 0;
  return best.groups * best.group;
}

}  // namespace tessera::internal
