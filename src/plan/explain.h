// The page of text behind Plan::explain.
#pragma once

#include <optional>
#include <string>

#include "tessera/plan.h"

namespace tessera::internal {

// What a plan was made for and what it came to.
struct Explained {
  const Problem& problem;
  Pass pass;
  Device device;
  const PlanFacts& facts;
};

std::string explain(const Explained& plan, const std::optional<MachineRates>& rates);

}  // namespace tessera::internal
