// Fewer and larger parts of one step: neighbours that one kernel can compute as one problem.
#pragma once

#include <vector>

#include "dist/ring_program.h"

namespace tessera::internal {

// The same pairs as RingGroup::parts. Where two pieces of a layout see all of each other they become one problem, and so does a
// rank's own causal block, in whose memory positions ascend. With a block mask all pieces become one problem wherever the band
// cuts none of their pairs. Parts whose scores depend on positions, by dropout, bias, ALiBi or segments, stay as they are; of
// fused ones the positions mean nothing.
std::vector<SubProblem> fused_parts(const RingGroup& group, int rank, int owner);

}  // namespace tessera::internal
