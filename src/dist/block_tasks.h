// The computation of one step: queries of one rank against keys of another, through ordinary Plans.
#pragma once

#include <vector>

#include "dist/block.h"
#include "dist/gathered.h"
#include "dist/sub_problem.h"
#include "tessera/attention.h"
#include "tessera/communicator.h"

namespace tessera::internal {

// Some of the key heads, with the query heads that read them.
struct Heads {
  Range keys;
  Range queries;
};
Heads all_heads(const Problem& whole);
// The first or the second half of them. A single key head is not split: all of it is the first half.
Heads half_of_heads(const Problem& whole, bool second);

// One sub-problem with its plan.
struct Task {
  SubProblem part;
  Heads heads;
  Plan plan;

  Place queries() const;
  Place keys() const;
};
using Tasks = std::vector<Task>;

// What tasks write: float32 on the CPU, on a device what its kernels have.
DType term_dtype(const Problem& whole, Device device);

// Of all heads or of some; none when there are no heads.
Tasks make_tasks(const std::vector<SubProblem>& parts, const Problem& whole, const Heads& heads, Pass pass,
                 const PlanOptions& options);

// Memory that the tasks of a rank share, one task at a time. Sizes are the largest over all tasks.
class TaskMemory {
 public:
  TaskMemory(const std::vector<Tasks>& steps, const Problem& whole, Pass pass, Communicator& communicator);
  std::int64_t bytes() const { return scratch_bytes_ + workspace_bytes_; }
  std::byte* scratch() const { return scratch_.get(); }
  std::span<std::byte> workspace(const Plan& plan) const {
    return {workspace_.get(), static_cast<std::size_t>(plan.workspace_bytes())};
  }

 private:
  std::int64_t scratch_bytes_ = 0;
  std::int64_t workspace_bytes_ = 0;
  Communicator::Memory scratch_;
  Communicator::Memory workspace_;
};

// Of the gradient of a bias that any one task computes, when all of it has the shape of `dbias`.
std::int64_t most_dbias_elements(const std::vector<Tasks>& steps, const TensorView& dbias);

// What all tasks of one run have in common.
struct TaskRun {
  const Problem& whole;
  const TaskMemory& memory;
  Device device;
  ScoreTensors score;      // of the whole problem, as the caller gave them
  ConstTensorView slopes;  // the same times the stride of the layout
  TensorView dbias;        // float32 sums, or absent
  void* stream = nullptr;
  std::byte* dbias_of_task = nullptr;  // memory for the largest
};

// Gathers O and LSE.
void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstTensorView& q, const ConstKeysBlock& keys,
               Gathered& out);

// Gathers the gradients of the three inputs.
struct GatheredGradients {
  Gathered& dq;
  Gathered& dk;
  Gathered& dv;
};
void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
               const GatheredGradients& gradients);

}  // namespace tessera::internal
