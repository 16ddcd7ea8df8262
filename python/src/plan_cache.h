// The plans of the last few calls.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tessera/plan.h"

namespace tessera::python {

// Plans are immutable and small, so that keeping them costs little. Their workspaces are in WorkspacePool.
class PlanCache {
 public:
  // Plan::make, or an earlier answer to the same question.
  std::shared_ptr<const Plan> get(const Problem& problem, Pass pass, const PlanOptions& options);

 private:
  static constexpr std::size_t kCapacity = 16;

  struct Entry {
    PlanOptions options;
    std::string chosen_outside;  // TESSERA_ISA and TESSERA_IMPL when the plan was made
    std::shared_ptr<const Plan> plan;
  };

  std::mutex mutex_;
  std::vector<Entry> entries_;  // the last one used comes last
};

}  // namespace tessera::python
