// Running a Plan on the tensors of the host, wherever it computes.
#pragma once

#include <cstddef>
#include <span>

#include "cli/problem_tensors.h"
#include "cuda/memory.h"
#include "tessera/plan.h"

namespace tessera::cli {

// Memory for a Plan's workspace on the device that it was made for: exactly its size, aligned, filled with NaN.
class PlanWorkspace {
 public:
  explicit PlanWorkspace(const Plan& plan, const Device& device = {});
  std::span<std::byte> bytes() const;

 private:
  HostTensor host_;
  internal::DeviceMemory device_;
};

// Runs `plan`, made for `device`, on tensors of the host. For a CUDA device they are copied there, gaps and poison
// included, and the outputs of the pass are copied back.
void run_plan(const Plan& plan, const Device& device, const ProblemTensors& tensors);

}  // namespace tessera::cli
