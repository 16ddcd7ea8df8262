#include "api/implementations.h"
#include "core/fail.h"
#include "tessera/plan.h"

namespace tessera {

namespace {

// A plan for the CPU does not consider those for GPUs, so that it need not list their refusals.
std::span<const internal::Impl* const> candidates(const PlanOptions& options) {
  const bool on_cpu = options.device.kind == DeviceKind::cpu && options.impl.empty();
  return on_cpu ? internal::cpu_implementations() : internal::all_implementations();
}

}  // namespace

Plan Plan::make(const Problem& problem, Pass pass, const PlanOptions& options) {
  validate(problem);
  if (options.threads < 0) {
    internal::fail_argument("threads", std::int64_t{options.threads}, "0 (the default) or more");
  }
  internal::Selection selection = internal::select(candidates(options), problem, pass, options);
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
