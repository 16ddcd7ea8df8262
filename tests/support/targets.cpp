#include "support/targets.h"

#include <gtest/gtest.h>

#include "tessera/error.h"

namespace tessera::test {

PlanOptions Target::options() const {
  PlanOptions result;
  result.impl = impl;
  result.isa = isa;
  result.threads = threads;
  return result;
}

std::string Target::name() const { return isa.empty() ? impl : impl + "/" + isa; }

std::vector<Target> flash_targets() {
  std::vector<Target> targets;
  for (const std::string& isa : cpu_info().isas) {
    targets.push_back({"flash", isa});
  }
  return targets;
}

std::vector<Target> all_targets() {
  std::vector<Target> targets = flash_targets();
  for (const ImplInfo& info : implementations()) {
    if (info.available && info.name != "flash") {
      targets.push_back({info.name, ""});
    }
  }
  return targets;
}

Plan make_plan(const Problem& problem, Pass pass, const Target& target) {
  Plan plan = Plan::make(problem, pass, target.options());
  EXPECT_EQ(plan.facts().impl, target.impl);
  if (!target.isa.empty()) {
    EXPECT_EQ(plan.facts().isa, target.isa);
  }
  return plan;
}

bool accepts(const Problem& problem, Pass pass, const Target& target) {
  try {
    Plan::make(problem, pass, target.options());
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) {
      throw;
    }
    return false;
  }
}

}  // namespace tessera::test
