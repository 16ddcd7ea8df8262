// Problems whose keys are in a cache, against the same problems without one.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/problem_tensors.h"
#include "tessera/plan.h"

namespace tessera::test {

// The lengths that the tensors hold; seq_k for all where the problem has none there.
std::vector<std::int64_t> cache_lengths(const cli::ProblemTensors& tensors);

// Writes them, as many as the batch has sequences.
void set_cache_lengths(cli::ProblemTensors& tensors, const std::vector<std::int64_t>& lengths);

// Poison in place of every key and value that no sequence has in use.
void poison_unused(cli::ProblemTensors& tensors);

// The same problem with contiguous K and V and with key_lengths, and its tensors with the same numbers.
cli::ProblemTensors without_cache(const cli::ProblemTensors& tensors);

// A paged problem whose lengths come with the tensors, and one with both alone; bfloat16, causal.
Problem cache_problem(std::int64_t page_size, bool lengths_in_tensors);

}  // namespace tessera::test
