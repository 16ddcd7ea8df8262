#include "dist/block_tasks.h"

#include <algorithm>
#include <array>

#include "core/fail.h"
#include "dist/block_part.h"
#include "dist/tensor_ops.h"

namespace tessera::internal {

namespace {

// What a backward task needs beside its inputs and gradients. Without memory it counts.
struct BackwardScratch {
  BackwardScratch(std::byte* memory, const Problem& part, const Problem& whole, Device device) {
    const auto take = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
      const TensorView view(memory == nullptr ? nullptr : memory + bytes, dtype, shape, device);
      bytes += round_up(view.elements() * dtype_bytes(dtype), kWorkspaceAlignment);
      return view;
    };
    zeros = take(part.out_dtype(), {1, 1, 1, part.dim_v});
    if (part.alibi) {
      lse = take(DType::float32, {part.batch, part.heads_q, part.seq_q});
    }
    if (whole.out_dtype() != part.out_dtype()) {
      dout = take(part.out_dtype(), {part.batch, part.seq_q, part.heads_q, part.dim_v});
    }
  }
  TensorView zeros, lse, dout;
  std::int64_t bytes = 0;
};

Range batch_of(const SubProblem& part) { return {part.batch_begin, part.batch_begin + part.problem.batch}; }

// [batch, tokens, heads, dim] and [batch, heads, tokens] cut to a task's sequences, rows and heads.
template <class Void>
BasicTensorView<Void> rows_at(const BasicTensorView<Void>& view, const Place& place) {
  return slice(slice(slice(view, 0, place.batch), 1, place.rows), 2, place.heads);
}
template <class Void>
BasicTensorView<Void> lines_at(const BasicTensorView<Void>& view, const Place& place) {
  return slice(slice(slice(view, 0, place.batch), 1, place.heads), 2, place.rows);
}

// The rectangle of a bias-shaped tensor that a task sees.
template <class Void>
BasicTensorView<Void> bias_of_task(BasicTensorView<Void> bias, const Task& task) {
  const SubProblem& part = task.part;
  const Range batch = batch_of(part);
  const Range& heads = task.heads.queries;
  const std::array<Stripe, 4> cuts{
      {{batch.begin, batch.size(), 1}, {heads.begin, heads.size(), 1}, part.query_positions, part.key_positions}};
  for (std::size_t axis = 0; axis < cuts.size(); ++axis) {
    if (bias.shape[axis] != 1) {
      bias = slice(bias, static_cast<int>(axis), cuts[axis]);
    }
  }
  return bias;
}

// [heads] or [batch, heads].
ConstTensorView slopes_of_task(const ConstTensorView& slopes, const Task& task) {
  return slopes.rank == 2 ? slice(slice(slopes, 0, batch_of(task.part)), 1, task.heads.queries)
                          : slice(slopes, 0, task.heads.queries);
}

ScoreTensors score_of_task(const TaskRun& run, const Task& task) {
  ScoreTensors score;
  if (!run.score.bias.absent()) {
    score.bias = bias_of_task(run.score.bias, task);
  }
  if (!run.slopes.absent()) {
    score.alibi_slopes = slopes_of_task(run.slopes, task);
  }
  return score;
}

void shift_lse(const TensorView& lse, const TaskRun& run, const Task& task, float sign) {
  add_per_head(lse, slopes_of_task(run.score.alibi_slopes, task), 0, sign * task.part.distance_shift, run.stream);
}

}  // namespace

Heads all_heads(const Problem& whole) { return {{0, whole.heads_kv}, {0, whole.heads_q}}; }

Heads half_of_heads(const Problem& whole, bool second) {
  const std::int64_t middle = (whole.heads_kv + 1) / 2;
  const Range keys = second ? Range{middle, whole.heads_kv} : Range{0, middle};
  return {keys, {keys.begin * whole.group_size(), keys.end * whole.group_size()}};
}

Place Task::queries() const { return {batch_of(part), part.query_rows, heads.queries}; }
Place Task::keys() const { return {batch_of(part), part.key_rows, heads.keys}; }

DType term_dtype(const Problem& whole, Device device) {
  return device.kind == DeviceKind::cpu ? DType::float32 : whole.dtype;
}

Tasks make_tasks(const std::vector<SubProblem>& parts, const Problem& whole, const Heads& heads, Pass pass,
                 const PlanOptions& options) {
  PlanOptions part_options = options;
  part_options.part_of_keys = true;
  Tasks tasks;
  if (heads.keys.empty()) {
    return tasks;
  }
  for (const SubProblem& part : parts) {
    SubProblem own = part;
    Problem& problem = own.problem;
    problem.output_dtype = term_dtype(whole, options.device);
    problem.heads_q = heads.queries.size();
    problem.heads_kv = heads.keys.size();
    problem.mask = mask_of_heads(problem.mask, heads.queries);
    problem.dropout.head_start += heads.queries.begin;
    if (problem.dropout.threshold() == 0) {
      problem.dropout = {};
    }
    if (problem.score_function) {
      problem.function_positions.head_start += static_cast<int>(heads.queries.begin);
    }
    if (problem.bias_shape && (*problem.bias_shape)[1] != 1) {
      (*problem.bias_shape)[1] = problem.heads_q;
    }
    Plan plan = Plan::make(problem, pass, part_options);
    tasks.push_back({std::move(own), heads, std::move(plan)});
  }
  return tasks;
}

TaskMemory::TaskMemory(const std::vector<Tasks>& steps, const Problem& whole, Pass pass, Communicator& communicator) {
  for (const Tasks& tasks : steps) {
    for (const Task& task : tasks) {
      if (pass == Pass::backward) {
        scratch_bytes_ =
            std::max(scratch_bytes_, BackwardScratch(nullptr, task.part.problem, whole, communicator.device()).bytes);
      }
      workspace_bytes_ = std::max(workspace_bytes_, task.plan.workspace_bytes());
    }
  }
  scratch_ = communicator.allocate(scratch_bytes_);
  workspace_ = communicator.allocate(workspace_bytes_);
}

std::int64_t most_dbias_elements(const std::vector<Tasks>& steps, const TensorView& dbias) {
  std::int64_t most = 0;
  for (const Tasks& tasks : steps) {
    for (const Task& task : tasks) {
      most = std::max(most, bias_of_task(dbias, task).elements());
    }
  }
  return most;
}

void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstTensorView& q, const ConstKeysBlock& keys,
               Gathered& out) {
  for (const Task& task : tasks) {
    const Partial result = out.open(task.queries());
    ForwardTensors tensors;
    tensors.q = rows_at(q, task.queries());
    tensors.k = rows_at(keys.k, task.keys());
    tensors.v = rows_at(keys.v, task.keys());
    tensors.out = result.out;
    tensors.lse = result.lse;
    tensors.score = score_of_task(run, task);
    task.plan.run(tensors, run.memory.workspace(task.plan), run.stream);
    if (task.part.distance_shift != 0) {
      shift_lse(result.lse, run, task, -1);
    }
    out.close();
  }
}

void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
               const GatheredGradients& gradients) {
  for (const Task& task : tasks) {
    const Problem& problem = task.part.problem;
    const BackwardScratch scratch(run.memory.scratch(), problem, run.whole, run.device);
    BackwardTensors tensors;
    tensors.q = rows_at(queries.q, task.queries());
    tensors.k = rows_at(keys.k, task.keys());
    tensors.v = rows_at(keys.v, task.keys());
    tensors.dout = rows_at(queries.dout, task.queries());
    if (!scratch.dout.absent()) {
      convert(tensors.dout, scratch.dout, run.stream);
      tensors.dout = scratch.dout;
    }
    // D is rowsum(dO * O) - dLSE: with O = 0, and -D in the place of dLSE, it is the one of all keys.
    fill(scratch.zeros, 0, run.stream);
    const std::array<std::int64_t, kMaxRank> shape{problem.batch, problem.seq_q, problem.heads_q, problem.dim_v};
    const std::array<std::int64_t, kMaxRank> strides{0, 0, 0, 1};
    tensors.out = ConstTensorView(scratch.zeros.data, problem.out_dtype(), shape, strides, run.device);
    tensors.dlse = lines_at(queries.minus_delta, task.queries());
    tensors.lse = lines_at(queries.lse, task.queries());
    if (task.part.distance_shift != 0) {
      convert(tensors.lse, scratch.lse, run.stream);
      shift_lse(scratch.lse, run, task, 1);
      tensors.lse = scratch.lse;
    }
    tensors.dq = gradients.dq.open(task.queries()).out;
    tensors.dk = gradients.dk.open(task.keys()).out;
    tensors.dv = gradients.dv.open(task.keys()).out;
    tensors.score = score_of_task(run, task);
    TensorView dbias_sum;
    if (!run.dbias.absent()) {
      dbias_sum = bias_of_task(run.dbias, task);
      tensors.dbias = TensorView(run.dbias_of_task, DType::float32, dbias_sum.shape, {}, run.device);
    }
    task.plan.run(tensors, run.memory.workspace(task.plan), run.stream);
    gradients.dq.close();
    gradients.dk.close();
    gradients.dv.close();
    if (!run.dbias.absent()) {
      sum(std::to_array<ConstTensorView>({dbias_sum, tensors.dbias}), dbias_sum, run.stream);
    }
  }
}

}  // namespace tessera::internal
