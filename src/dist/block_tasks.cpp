#include "dist/block_tasks.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "core/fail.h"
#include "dist/tensor_ops.h"

namespace tessera::internal {

namespace {

// Tensors of one task in the shared scratch memory. Without memory it counts.
class Scratch {
 public:
  explicit Scratch(std::byte* memory) : memory_(memory) {}
  TensorView take(std::initializer_list<std::int64_t> shape) {
    const TensorView view(memory_ == nullptr ? nullptr : memory_ + bytes_, DType::float32, shape);
    bytes_ += round_up(view.elements() * dtype_bytes(DType::float32), kWorkspaceAlignment);
    return view;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::int64_t bytes_ = 0;
};

struct ForwardScratch {
  ForwardScratch(std::byte* memory, const Problem& part) {
    Scratch scratch(memory);
    partial.out = scratch.take({part.batch, part.seq_q, part.heads_q, part.dim_v});
    partial.lse = scratch.take({part.batch, part.heads_q, part.seq_q});
    bytes = scratch.bytes();
  }
  Partial partial;
  std::int64_t bytes;
};

struct BackwardScratch {
  BackwardScratch(std::byte* memory, const Problem& part, const Problem& whole) {
    Scratch scratch(memory);
    zeros = scratch.take({1, 1, 1, part.dim_v});
    dq = scratch.take({part.batch, part.seq_q, part.heads_q, part.dim_qk});
    dk = scratch.take({part.batch, part.seq_k, part.heads_kv, part.dim_qk});
    dv = scratch.take({part.batch, part.seq_k, part.heads_kv, part.dim_v});
    if (part.alibi) {
      lse = scratch.take({part.batch, part.heads_q, part.seq_q});
    }
    if (whole.out_dtype() != DType::float32) {
      dout = scratch.take({part.batch, part.seq_q, part.heads_q, part.dim_v});
    }
    bytes = scratch.bytes();
  }
  TensorView zeros, dq, dk, dv, lse, dout;
  std::int64_t bytes;
};

Range batch_of(const SubProblem& part) { return {part.batch_begin, part.batch_begin + part.problem.batch}; }

// [batch, tokens, heads, dim] and [batch, heads, tokens] cut to a task's sequences and rows.
template <class Void>
BasicTensorView<Void> rows_of_part(const BasicTensorView<Void>& view, const SubProblem& part, Range rows) {
  return slice(slice(view, 0, batch_of(part)), 1, rows);
}
template <class Void>
BasicTensorView<Void> lines_of_part(const BasicTensorView<Void>& view, const SubProblem& part) {
  return slice(slice(view, 0, batch_of(part)), 2, part.query_rows);
}

// The rectangle of a bias-shaped tensor that a task sees.
template <class Void>
BasicTensorView<Void> bias_of_part(BasicTensorView<Void> bias, const SubProblem& part) {
  const Range batch = batch_of(part);
  const std::array<std::pair<int, Stripe>, 3> cuts{
      {{0, {batch.begin, batch.size(), 1}}, {2, part.query_positions}, {3, part.key_positions}}};
  for (const auto& [axis, stripe] : cuts) {
    if (bias.shape[static_cast<std::size_t>(axis)] != 1) {
      bias = slice(bias, axis, stripe);
    }
  }
  return bias;
}

ScoreTensors score_of_part(const TaskRun& run, const SubProblem& part) {
  ScoreTensors score;
  if (!run.score.bias.absent()) {
    score.bias = bias_of_part(run.score.bias, part);
  }
  if (!run.slopes.absent()) {
    score.alibi_slopes = run.slopes.rank == 2 ? slice(run.slopes, 0, batch_of(part)) : run.slopes;
  }
  return score;
}

}  // namespace

Tasks make_tasks(std::vector<SubProblem> parts, Pass pass, const PlanOptions& options) {
  PlanOptions part_options = options;
  part_options.part_of_keys = true;
  Tasks tasks;
  for (SubProblem& part : parts) {
    Plan plan = Plan::make(part.problem, pass, part_options);
    tasks.push_back({std::move(part), std::move(plan), false});
  }
  return tasks;
}

void mark_first(std::vector<Tasks>& steps) {
  std::vector<std::tuple<std::int64_t, std::int64_t>> seen;  // first sequence and first row: rows are whole pieces
  for (Tasks& tasks : steps) {
    for (Task& task : tasks) {
      const std::tuple rows{task.part.batch_begin, task.part.query_rows.begin};
      task.first = std::find(seen.begin(), seen.end(), rows) == seen.end();
      if (task.first) {
        seen.push_back(rows);
      }
    }
  }
}

TaskMemory::TaskMemory(const std::vector<Tasks>& steps, const Problem& whole, Pass pass, Communicator& communicator) {
  for (const Tasks& tasks : steps) {
    for (const Task& task : tasks) {
      const Problem& part = task.part.problem;
      const std::int64_t scratch = pass == Pass::backward ? BackwardScratch(nullptr, part, whole).bytes
                                   : task.first           ? 0
                                                          : ForwardScratch(nullptr, part).bytes;
      scratch_bytes_ = std::max(scratch_bytes_, scratch);
      workspace_bytes_ = std::max(workspace_bytes_, task.plan.workspace_bytes());
    }
  }
  scratch_ = communicator.allocate(scratch_bytes_);
  workspace_ = communicator.allocate(workspace_bytes_);
}

std::vector<float> scaled_slopes(const ConstTensorView& slopes, float factor) {
  std::vector<float> result(static_cast<std::size_t>(slopes.elements()));
  if (slopes.rank == 1) {
    convert(slopes, TensorView(result.data(), DType::float32, {slopes.shape[0]}));
  } else if (slopes.rank == 2) {
    convert(slopes, TensorView(result.data(), DType::float32, {slopes.shape[0], slopes.shape[1]}));
  }
  for (float& slope : result) {
    slope *= factor;
  }
  return result;
}

void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstTensorView& q, const ConstKeysBlock& keys,
               const Partial& sum) {
  for (const Task& task : tasks) {
    const SubProblem& part = task.part;
    const Partial rows{rows_of_part(sum.out, part, part.query_rows), lines_of_part(sum.lse, part)};
    const Partial result = task.first ? rows : ForwardScratch(run.memory.scratch(), part.problem).partial;
    ForwardTensors tensors;
    tensors.q = rows_of_part(q, part, part.query_rows);
    tensors.k = rows_of_part(keys.k, part, part.key_rows);
    tensors.v = rows_of_part(keys.v, part, part.key_rows);
    tensors.out = result.out;
    tensors.lse = result.lse;
    tensors.score = score_of_part(run, part);
    task.plan.run(tensors, run.memory.workspace(task.plan), run.stream);
    if (part.distance_shift != 0) {
      add_per_head(result.lse, run.score.alibi_slopes, part.batch_begin, -part.distance_shift);
    }
    if (!task.first) {
      merge({rows.out, rows.lse}, {result.out, result.lse}, rows, run.threads);
    }
  }
}

void run_tasks(const Tasks& tasks, const TaskRun& run, const ConstQueriesBlock& queries, const ConstKeysBlock& keys,
               const TensorView& dq, const KeysBlock& dkeys) {
  for (const Task& task : tasks) {
    const SubProblem& part = task.part;
    const BackwardScratch scratch(run.memory.scratch(), part.problem, run.whole);
    BackwardTensors tensors;
    tensors.q = rows_of_part(queries.q, part, part.query_rows);
    tensors.k = rows_of_part(keys.k, part, part.key_rows);
    tensors.v = rows_of_part(keys.v, part, part.key_rows);
    tensors.dout = rows_of_part(queries.dout, part, part.query_rows);
    if (!scratch.dout.absent()) {
      convert(tensors.dout, scratch.dout);
      tensors.dout = scratch.dout;
    }
    // D is rowsum(dO * O) - dLSE: with O = 0, and -D in the place of dLSE, it is the one of all keys.
    fill(scratch.zeros, 0);
    const std::array<std::int64_t, kMaxRank> shape{part.problem.batch, part.problem.seq_q, part.problem.heads_q,
                                                   part.problem.dim_v};
    const std::array<std::int64_t, kMaxRank> strides{0, 0, 0, 1};
    tensors.out = ConstTensorView(scratch.zeros.data, DType::float32, shape, strides);
    tensors.dlse = lines_of_part(queries.minus_delta, part);
    tensors.lse = lines_of_part(queries.lse, part);
    if (part.distance_shift != 0) {
      convert(tensors.lse, scratch.lse);
      add_per_head(scratch.lse, run.score.alibi_slopes, part.batch_begin, part.distance_shift);
      tensors.lse = scratch.lse;
    }
    tensors.dq = scratch.dq;
    tensors.dk = scratch.dk;
    tensors.dv = scratch.dv;
    tensors.score = score_of_part(run, part);
    TensorView dbias_sum;
    std::vector<float> dbias;  // its shape is the caller's choice
    if (!run.dbias.absent()) {
      dbias_sum = bias_of_part(run.dbias, part);
      dbias.resize(static_cast<std::size_t>(dbias_sum.elements()));
      tensors.dbias = TensorView(dbias.data(), DType::float32, dbias_sum.shape, {});
    }
    task.plan.run(tensors, run.memory.workspace(task.plan), run.stream);
    add(scratch.dq, rows_of_part(dq, part, part.query_rows));
    add(scratch.dk, rows_of_part(dkeys.k, part, part.key_rows));
    add(scratch.dv, rows_of_part(dkeys.v, part, part.key_rows));
    if (!run.dbias.absent()) {
      add(tensors.dbias, dbias_sum);
    }
  }
}

}  // namespace tessera::internal
