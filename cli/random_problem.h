// Random problems over the whole feature space.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/problem_tensors.h"
#include "tessera/problem.h"

namespace tessera::cli {

struct RandomProblem {
  Problem problem;
  TensorOptions tensors;
};

// Problem number `index` of the sequence that `seed` names: small, valid, the same on every machine. Drawn are every
// field of Problem and TensorOptions, with lengths 0 and 1, odd tails, sequences longer than a tile, fully masked rows,
// grouped heads, ragged sequences, empty documents, expanded and padded memory.
RandomProblem random_problem(std::uint64_t seed, std::uint64_t index);

// The features that a problem has, for counting what a run has covered: "causal", "ragged", "dropout", ...
std::vector<std::string> features_of(const RandomProblem& random);

}  // namespace tessera::cli
