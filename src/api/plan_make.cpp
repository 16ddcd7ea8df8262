#include "api/implementations.h"
#include "core/fail.h"
#include "tessera/plan.h"

namespace tessera {

Plan Plan::make(const Problem& problem, Pass pass, const PlanOptions& options) {
  validate(problem);
  if (options.threads < 0) {
    internal::fail_argument("threads", std::int64_t{options.threads}, "0 (the default) or more");
  }
  internal::Selection selection = internal::select(internal::all_implementations(), problem, pass, options);
  Plan plan;
  plan.problem_ = problem;
  plan.pass_ = pass;
  plan.device_ = options.device;
  plan.facts_ = std::move(selection.facts);
  plan.executable_ = std::move(selection.executable);
  return plan;
}

std::vector<ImplInfo> implementations() {
  std::vector<ImplInfo> rows;
  for (const internal::Impl* impl : internal::all_implementations()) {
    const auto reason = impl->unavailable();
    rows.push_back({std::string(impl->name()), std::string(impl->summary()), !reason, reason.value_or("")});
  }
  return rows;
}

}  // namespace tessera
