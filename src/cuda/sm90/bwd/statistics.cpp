#include "cuda/sm90/bwd/statistics.h"

#include <algorithm>

#include "core/fail.h"
#include "cuda/common/backward_rows.h"
#include "cuda/tensors.h"

namespace tessera::internal {

void require_backward_tensors(const BackwardTensors& tensors, int device) {
  for (const auto& [name, view] : {std::pair<const char*, ConstTensorView>{"q", tensors.q},
                                   {"k", tensors.k},
                                   {"v", tensors.v},
                                   {"out", tensors.out},
                                   {"dout", tensors.dout},
                                   {"dq", tensors.dq},
                                   {"dk", tensors.dk},
                                   {"dv", tensors.dv}}) {
    require_copyable(name, view, device);
  }
  require_on_device("lse", tensors.lse, device);
  if (!tensors.dlse.absent()) {
    require_on_device("dlse", tensors.dlse, device);
  }
  if (!tensors.dsinks.absent()) {
    require_on_device("dsinks", tensors.dsinks, device);
  }
}

void zero_gradients(const BackwardTensors& tensors, int device, void* stream) {
  for (const TensorView* view : {&tensors.dq, &tensors.dk, &tensors.dv}) {
    if (view->elements() > 0) {
      fill_tokens(device, *view, stream);
    }
  }
}

namespace {

int lanes_for(std::int64_t dim_v) { return dim_v <= 64 ? 8 : dim_v <= 128 ? 16 : 32; }

}  // namespace

float exponent_scale(const Problem& problem) { return std::max(problem.softmax_scale(), 1e-20F); }

BackwardStatistics::BackwardStatistics(int device, const Problem& problem, std::int64_t tile_q, const Numbers& numbers,
                                       WorkspaceLayout& layout)
    : device_(device),
      lanes_(lanes_for(problem.dim_v)),
      bfloat16_(problem.dtype == DType::bfloat16),
      has_parts_(numbers.parts),
      has_whole_(numbers.whole || problem.sinks),
      lse_factor_(-1.0F / exponent_scale(problem)),
      dim_v_(static_cast<std::int32_t>(problem.dim_v)),
      kernel_(Kernel::load(device, "backward_rows", "backward_rows_" + std::to_string(lanes_))) {
  if (uniform_lengths(problem)) {
    line_rows_ = round_up(problem.seq_q, tile_q);
    rows_ = checked_mul(checked_mul(problem.batch, problem.heads_q, "rows"), line_rows_, "rows");
  } else {
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      line_rows_ += round_up(problem.sequence(b).queries, tile_q);
    }
    rows_ = checked_mul(problem.heads_q, line_rows_, "rows");
  }
  if (rows_ > std::int64_t{1} << 31) {
    fail_argument("batch * heads * seq", std::to_string(rows_) + " rows", "up to 2^31 rows");
  }
  numbers_count_ = numbers.counters + (numbers.turns ? rows_ / tile_q : 0);
  if (has_whole_) {
    lse_log2_ = layout.add<float>(rows_);
    delta_ = layout.add<float>(rows_);
  }
  if (has_parts_) {
    parts_ = layout.add<StatisticParts>(rows_);
  }
  numbers_ = layout.add<std::int32_t>(numbers_count_);
}

std::int64_t BackwardStatistics::blocks() const {
  return ceil_div(std::max(rows_ * lanes_, numbers_count_), std::int64_t{kThreads});
}

KernelFacts BackwardStatistics::facts() const {
  KernelFacts row;
  row.name = "backward_rows";
  row.threads = kThreads;
  row.registers = kernel_.registers();
  row.spill_bytes = kernel_.spill_bytes();
  row.blocks = blocks();
  return row;
}

void BackwardStatistics::sum_sinks(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace,
                                   void* stream) const {
  if (tensors.dsinks.absent()) {
    return;
  }
  SinkRows params{};
  params.lse_log2 = lse_log2_.in(workspace);
  params.delta = delta_.in(workspace);
  params.sinks = static_cast<const float*>(tensors.score.sinks.data);
  params.sinks_stride = tensors.score.sinks.strides[0];
  params.dsinks = static_cast<float*>(tensors.dsinks.data);
  params.dsinks_stride = tensors.dsinks.strides[0];
  params.heads = batch.heads_q;
  params.lines = rows_ == 0 ? 0 : static_cast<std::int32_t>(rows_ / line_rows_ / batch.heads_q);
  params.line_rows = static_cast<std::int32_t>(line_rows_);
  Kernel::load(device_, "backward_rows", "backward_sinks").launch({batch.heads_q, kThreads, 0}, params, stream);
}

void BackwardStatistics::run(const BackwardTensors& tensors, const Batch& batch, float* dq_sum, int dq_columns,
                             std::span<std::byte> workspace, void* stream) const {
  BackwardRows params{};
  params.out = tensors.out.data;
  params.dout = tensors.dout.data;
  params.lse = static_cast<const float*>(tensors.lse.data);
  params.dlse = static_cast<const float*>(tensors.dlse.data);
  params.out_strides = strides_of(tensors.out);
  params.dout_strides = strides_of(tensors.dout);
  params.lse_strides = lse_strides_of(tensors.lse);
  params.dlse_strides = lse_strides_of(tensors.dlse);
  params.lse_log2 = has_whole_ ? lse_log2_.in(workspace) : nullptr;
  params.delta = has_whole_ ? delta_.in(workspace) : nullptr;
  params.parts = parts(workspace);
  params.lse_factor = lse_factor_;
  params.dq_sum = dq_sum;
  params.numbers = numbers_.in(workspace);
  params.number_count = numbers_count_;
  params.batch = batch;
  params.rows = rows_;
  params.line_rows = static_cast<std::int32_t>(line_rows_);
  params.dim_v = dim_v_;
  params.dq_columns = dq_columns;
  params.bfloat16 = bfloat16_ ? 1 : 0;
  kernel_.launch({blocks(), kThreads, 0}, params, stream);
}

}  // namespace tessera::internal
