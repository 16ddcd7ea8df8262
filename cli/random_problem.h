// Random problems over the whole feature space, or over the part of it that one Impl takes.
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

// all: every field of Problem and TensorOptions. sm90: what that Impl takes: 16-bit storage, head dims that are multiples
// of 8 up to 256, bands, up to head dim 128 segments and block masks, a positive scale, finite tensors aligned to 16 bytes;
// larger problems, which span several of its tiles.
enum class ProblemSpace : std::uint8_t { all, sm90 };

// Problem number `index` of the sequence that `seed` names: small, valid, the same on every machine. There are lengths
// 0 and 1, odd tails, sequences longer than a tile, fully masked rows, grouped heads, ragged sequences, empty documents,
// expanded and padded memory.
RandomProblem random_problem(std::uint64_t seed, std::uint64_t index, ProblemSpace space = ProblemSpace::all);

// The features that a problem has, for counting what a run has covered: "causal", "ragged", "dropout", ...
std::vector<std::string> features_of(const RandomProblem& random);

}  // namespace tessera::cli
