// The conformance table: every feature, alone and in combinations, on shapes that are known to break kernels.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "cli/problem_tensors.h"

namespace tessera::test {

struct Case {
  std::string name;
  Problem problem;
  cli::TensorOptions tensors;
};

inline void PrintTo(const Case& row, std::ostream* out) { *out << row.problem.describe(); }

// Names are unique, so that a row of the table is a test.
std::vector<Case> conformance_cases();

// The parts of the table.
std::vector<Case> shape_cases();
std::vector<Case> mask_cases();
std::vector<Case> score_cases();
std::vector<Case> layout_cases();
std::vector<Case> combination_cases();
std::vector<Case> block_cases();
std::vector<Case> function_cases();

// A problem to change one field of: two sequences, two heads, not square, no extent that a vector divides.
Problem base_problem();
Case make_case(std::string name, void (*change)(Problem&, cli::TensorOptions&));

}  // namespace tessera::test
