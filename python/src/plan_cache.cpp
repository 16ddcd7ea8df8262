#include "plan_cache.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

namespace tessera::python {

namespace {

// What plans read from the environment.
std::string environment_choices() {
  std::string choices;
  for (const char* name : {"TESSERA_ISA", "TESSERA_IMPL", "TESSERA_JIT"}) {
    const char* const value = std::getenv(name);
    choices.append(value == nullptr ? "" : value).append(";");
  }
  return choices;
}

}  // namespace

std::shared_ptr<const Plan> PlanCache::get(const Problem& problem, Pass pass, const PlanOptions& options) {
  const std::string chosen_outside = environment_choices();
  const auto matches = [&](const Entry& entry) {
    const PlanOptions& made = entry.options;
    return entry.plan->pass() == pass && made.device == options.device && made.deterministic == options.deterministic &&
           made.float32_products == options.float32_products && made.threads == options.threads &&
           made.impl == options.impl && made.isa == options.isa && entry.chosen_outside == chosen_outside &&
           entry.plan->problem() == problem;
  };
  {
    const std::scoped_lock lock(mutex_);
    const auto found = std::find_if(entries_.rbegin(), entries_.rend(), matches);
    if (found != entries_.rend()) {
      std::rotate(found.base() - 1, found.base(), entries_.end());
      return entries_.back().plan;
    }
  }
  std::shared_ptr<const Plan> plan;
  {
    const nanobind::gil_scoped_release release;  // a mask function or a compiler may take long
    plan = std::make_shared<const Plan>(Plan::make(problem, pass, options));
  }
  const std::scoped_lock lock(mutex_);
  if (entries_.size() == kCapacity) {
    entries_.erase(entries_.begin());
  }
  entries_.push_back({options, chosen_outside, plan});
  return plan;
}

}  // namespace tessera::python
