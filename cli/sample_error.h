// The error of results that are too large for the oracle: a few rows of one sequence and one key head.
#pragma once

#include <optional>
#include <string>

#include "cli/problem_tensors.h"

namespace tessera::cli {

struct SampledError {
  double error = 0;       // the largest ||x - ref|| / ||ref|| over the outputs that were compared
  std::string output;     // whose it is
  std::int64_t rows = 0;  // query rows of each head that were compared
  bool whole = false;     // all rows, and with them dK and dV
};

// Compares O and LSE, or dQ and where the sample is the whole sequence dK and dV, that `tensors` hold with the oracle's.
// The sample is the last sequence with the query heads of its last key head: blocks of rows from the beginning, the
// middle and the end against all of its keys, or every row where the oracle does that in a second or two.
SampledError sampled_error(const ProblemTensors& tensors, Pass pass);

// "3.1e-07", with * behind it where not all rows were compared; "-" where nothing was.
std::string error_text(const std::optional<SampledError>& sample);

}  // namespace tessera::cli
