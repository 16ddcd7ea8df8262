// --score-function, --mask-function and --function-start.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "tessera/problem.h"

namespace tessera::cli {

class FunctionFlags {
 public:
  void add(::CLI::App& app, const std::string& mask_group, const std::string& score_group);
  // Reads the files. Throws Error(io) that names the one which cannot be read, and Error(invalid_argument).
  void apply(Problem& problem) const;

 private:
  std::string score_, mask_;  // FILE[:PARAMS]
  Positions positions_;
};

// The flags that give the functions of this problem again, where they came from files and their parameters are few.
std::string function_flags(const Problem& problem);

}  // namespace tessera::cli
