#include "support/conforms.h"

#include <gtest/gtest.h>

#include "cli/compare.h"

namespace tessera::test {

void expect_conforms(const Problem& problem, const cli::TensorOptions& tensors, const std::vector<Target>& targets,
                     bool deterministic) {
  cli::CheckOptions options;
  options.tensors = tensors;
  options.plan.threads = 1;
  options.backward = targets.empty() || accepts(problem, Pass::backward, targets.front());
  std::vector<PlanOptions> plans;
  for (const Target& target : targets) {
    plans.push_back(target.options());
    plans.back().deterministic = deterministic;
  }
  const std::vector<cli::CheckResult> results = cli::check_problem(problem, options, plans);
  for (std::size_t n = 0; n < targets.size(); ++n) {
    const cli::CheckResult& result = results[n];
    EXPECT_EQ(result.forward.impl, targets[n].impl);
    EXPECT_EQ(result.forward.isa, targets[n].isa.empty() ? result.forward.isa : targets[n].isa);
    if (options.backward) {
      EXPECT_EQ(result.backward->impl, targets[n].impl);
      EXPECT_EQ(result.backward->isa, targets[n].isa.empty() ? result.backward->isa : targets[n].isa);
    }
    EXPECT_GE(result.outputs.size(), options.backward ? 5U : 2U);
    for (const cli::OutputCheck& check : result.outputs) {
      EXPECT_TRUE(check.ok()) << targets[n].name() << " " << check.output << ": error " << check.error << ", allowed "
                              << check.allowed << (check.by_typical_size ? " of the typical size" : "") << " "
                              << check.mismatch << "\n  " << problem.describe();
    }
  }
}

}  // namespace tessera::test
