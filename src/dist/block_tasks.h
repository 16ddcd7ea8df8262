// The computation of one step: queries of one rank against keys of another, through ordinary Plans.
#pragma once

#include <vector>

#include "dist/block.h"
#include "dist/sub_problem.h"
#include "tessera/attention.h"
#include "tessera/communicator.h"

namespace tessera::internal {

// One sub-problem with its plan.
struct Task {
  SubProblem part;
  Plan plan;
  bool first = false;  // forward: no task before it has the same rows
};
using Tasks = std::vector<Task>;

Tasks make_tasks(std::vector<SubProblem> parts, Pass pass, const PlanOptions& options);

// Sets Task::first over all steps of one rank, in their order.
void mark_first(std::vector<Tasks>& steps);

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

// The slopes times the stride of the layout; what TaskRun::slopes points to.
std::vector<float> scaled_slopes(const ConstTensorView& slopes, float factor);

// What all tasks of one run have in common.
struct TaskRun {
  const Problem& whole;
  const TaskMemory& memory;
  ScoreTensors score;      // of the whole problem, as the caller gave them
  ConstTensorView slopes;  // scaled_slopes
  TensorView dbias;        // float32 sums, or absent
  int threads = 0;         // of the merges
  void* stream = nullptr;
};

// Merges the tasks' results into `sum`, float32 [batch, tokens, heads, dim] with LSE [batch, heads, tokens].
void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstTensorView& q, const ConstKeysBlock& keys,
               const Partial& sum);

// Adds the tasks' gradients to float32 sums.
void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
               const TensorView& dq, const KeysBlock& dkeys);

}  // namespace tessera::internal
