// What the queries of one rank and the keys of another have to do with each other, as ordinary Problems.
#pragma once

#include <vector>

#include "tessera/problem.h"
#include "tessera/sequence_layout.h"

namespace tessera::internal {

// A rectangle of the whole problem between neighbours of one piece of a layout, with its mask in its own coordinates.
// It has no sinks, which belong to a row and not to a block of keys, and float32 outputs.
struct SubProblem {
  Problem problem;
  std::int64_t batch_begin = 0;  // of the whole batch: problem.batch sequences from here
  Range query_rows;              // of the queries' and the keys' blocks
  Range key_rows;
  Stripe query_positions;  // the same rows in the whole sequences
  Stripe key_positions;
  // With ALiBi: slopes are multiplied by slope_factor, and the true score is the problem's less slope * distance_shift.
  // A stripe's distances are multiples of its stride and a constant, which leaves the softmax as it is.
  float slope_factor = 1;
  float distance_shift = 0;
};

// The parts in which any pair attends; empty when this pair of ranks has nothing to do.
std::vector<SubProblem> sub_problems(const Problem& whole, const SequenceLayout& query_layout, int query_rank,
                                     const SequenceLayout& key_layout, int key_rank);

// Throws Error that names the field of a valid problem which cannot be spread over ranks.
void require_distributable(const Problem& whole);

}  // namespace tessera::internal
