#include "plan_cache.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace tessera::python {

Plan PlanCache::get(const Problem& problem, Pass pass, const PlanOptions& options) {
  const char* variable = std::getenv("TESSERA_ISA");
  const std::string environment_isa = variable == nullptr ? "" : variable;
  const auto matches = [&](const Entry& entry) {
    return entry.plan.pass() == pass && entry.options.device == options.device && entry.options.impl == options.impl &&
           entry.options.isa == options.isa && entry.options.threads == options.threads &&
           entry.environment_isa == environment_isa && entry.plan.problem() == problem;
  };
  {
    const std::scoped_lock lock(mutex_);
    const auto found = std::find_if(entries_.begin(), entries_.end(), matches);
    if (found != entries_.end()) {
      std::rotate(found, found + 1, entries_.end());
      return entries_.back().plan;
    }
  }
  Plan plan = Plan::make(problem, pass, options);
  const std::scoped_lock lock(mutex_);
  if (entries_.size() == kCapacity) {
    entries_.erase(entries_.begin());
  }
  entries_.push_back({options, environment_isa, plan});
  return plan;
}

}  // namespace tessera::python
