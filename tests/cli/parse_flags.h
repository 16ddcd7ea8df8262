// A line of flags, read as a command reads them.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "cli/problem_flags.h"

namespace tessera::cli {

struct ParsedFlags {
  Problem problem;
  TensorOptions tensors;
};

// With the flags of a plan where there is one to set.
inline ParsedFlags parse_flags(const std::string& line, PlanOptions* plan = nullptr) {
  ::CLI::App app;
  ProblemFlags flags;
  ParsedFlags parsed;
  flags.add_shape(app);
  flags.add_options(app);
  add_tensor_flags(app, parsed.tensors);
  if (plan != nullptr) {
    add_plan_flags(app, *plan, &flags);
  }
  std::istringstream words(line);
  std::vector<std::string> arguments{std::istream_iterator<std::string>(words), {}};
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes vectors
  app.parse(arguments);
  parsed.problem = flags.problem();
  return parsed;
}

}  // namespace tessera::cli
