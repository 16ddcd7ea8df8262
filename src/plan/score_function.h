// Score functions in the Impls that run on the CPU.
#pragma once

#include <optional>
#include <string>

#include "function/native.h"
#include "tessera/problem.h"

namespace tessera::internal {

// Whether d(score) / d(scale * q . k) is something else than 1.
inline bool bends_scores(const Problem& problem) { return problem.softcap > 0 || problem.score_function.has_value(); }

// Why this CPU has no code for the problem's score function; nullopt where it has, or where there is none.
inline std::optional<std::string> refuses_score_function(const Problem& problem) {
  const auto reason = problem.score_function ? native_unavailable(*problem.score_function) : std::nullopt;
  return reason ? std::optional("score_function: " + *reason) : std::nullopt;
}

// The same problem, in which ScoreFunction::native() has code.
inline Problem with_native_score_function(Problem problem) {
  if (problem.score_function) {
    problem.score_function = compiled(*problem.score_function);
  }
  return problem;
}

}  // namespace tessera::internal
