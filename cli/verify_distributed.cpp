#include <fmt/format.h>

#include "cli/distributed.h"
#include "cli/rank_tensors.h"
#include "cli/terminal.h"

namespace tessera::cli {

int verify_over_ranks(const Problem& problem, const CheckOptions& options, const RankFlags& flags) {
  return run_ranks(flags, options.plan.device, [&](Communicator& communicator) {
    const ProblemTensors tensors(problem, options.tensors);
    const DistributedOptions distributed = flags.options(options.plan, communicator);
    const DistributedFacts forward = run_on_rank(tensors, Pass::forward, communicator, distributed, true);
    DistributedFacts last = forward;
    if (options.backward) {
      last = run_on_rank(tensors, Pass::backward, communicator, distributed, true);
    }
    if (communicator.rank() != 0) {
      return 0;
    }
    const CheckResult result = check_outputs(tensors, options);
    fmt::print("{}\n{} ranks ({}), {} layout, {}{} against the oracle in double precision\n\n",
               bold(problem.describe()), communicator.size(), communicator.name(), layout_name(flags.layout),
               schedule_name(last.schedule),
               options.backward ? fmt::format(" ({} travel in the backward pass)",
                                              last.queries_travel ? "Q, dO, dQ, LSE and D" : "K, V, dK and dV")
                                : "");
    print_checks(result);
    fmt::print("\nerror = ||x - ref|| / ||ref||; allowed: the numerics contract\n{}\n",
               result.ok() ? green("passed") : red("FAILED"));
    return result.ok() ? 0 : 1;
  });
}

}  // namespace tessera::cli
