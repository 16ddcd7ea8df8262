// Fewer and larger parts of one step: neighbours that one kernel can compute as one problem.
#pragma once

#include <vector>

#include "dist/sub_problem.h"

namespace tessera::internal {

// The same pairs as `parts`, those of one pair of ranks. Where two pieces of a layout see all of each other they become one
// problem, and so does a rank's own causal block, in whose memory positions ascend. Parts whose scores depend on positions,
// by dropout, bias, ALiBi or segments, stay as they are; of fused ones the positions mean nothing.
std::vector<SubProblem> fused(const Problem& whole, std::vector<SubProblem> parts, bool own_block,
                              std::int64_t own_tokens);

}  // namespace tessera::internal
