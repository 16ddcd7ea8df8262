#include <cstdlib>

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

// TESSERA_IMPL stands in for an Impl that the caller leaves open.
PlanOptions with_environment(PlanOptions options) {
  const char* const impl = std::getenv("TESSERA_IMPL");
  if (options.impl.empty() && impl != nullptr) {
    options.impl = impl;
  }
  return options;
}

// Gradients of a cache have no meaning: it holds keys of earlier steps, and pages that sequences may share.
void refuse_cache_backward(const Problem& problem, Pass pass) {
  if (pass == Pass::backward && problem.paged()) {
    internal::fail_argument("page_size", problem.page_size, "0 in the backward pass");
  }
  if (pass == Pass::backward && problem.lengths_in_tensors) {
    internal::fail_argument("lengths_in_tensors", "true", "false in the backward pass, with key_lengths");
  }
}

}  // namespace

Plan Plan::make(const Problem& problem, Pass pass, const PlanOptions& options) {
  const PlanOptions chosen = with_environment(options);
  validate(problem);
  internal::check_threads(chosen.threads);
  refuse_cache_backward(problem, pass);
  internal::Selection selection =
      internal::select(candidates(chosen), lower_mask_function(problem, chosen.threads), pass, chosen);
  Plan plan;
  plan.problem_ = problem;
  plan.pass_ = pass;
  plan.device_ = chosen.device;
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
