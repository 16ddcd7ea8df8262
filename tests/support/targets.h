// What a test can be run on: every available Impl, and each instruction set of those that have several.
#pragma once

#include <string>
#include <vector>

#include "tessera/plan.h"

namespace tessera::test {

struct Target {
  std::string impl;
  std::string isa;  // empty for Impls without a choice
  int threads = 1;  // more only where threads are the question: on a busy machine they wait for each other

  PlanOptions options() const;
  // "flash/AVX2", "reference"
  std::string name() const;
};

// "reference", "standard" where this build has it, and "flash" once for each instruction set that cpu_info() lists.
std::vector<Target> all_targets();
// The last of these alone.
std::vector<Target> flash_targets();

// A plan for `target`. Fails the test unless the Impl and the instruction set are those that were asked for.
Plan make_plan(const Problem& problem, Pass pass, const Target& target);

// Whether `target` takes the problem; an Impl may refuse, with a reason, what it does not do.
bool accepts(const Problem& problem, Pass pass, const Target& target);

}  // namespace tessera::test
