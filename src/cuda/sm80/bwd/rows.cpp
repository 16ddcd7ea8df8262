#include "cuda/sm80/bwd/rows.h"

#include "core/fail.h"
#include "cuda/executable.h"
#include "cuda/tensors.h"

namespace tessera::internal {

namespace {

constexpr std::string_view kImage = "gradient_rows";
constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a row
constexpr int kSinkThreads = 1024;

GradientElement gradient_element(DType dtype) {
  return dtype == DType::float32    ? GradientElement::float32
         : dtype == DType::bfloat16 ? GradientElement::bfloat16
                                    : GradientElement::float16;
}

KernelFacts facts_of(std::string_view name, const Kernel& kernel, int threads, std::int64_t blocks) {
  KernelFacts row;
  row.name = name;
  row.threads = threads;
  row.registers = kernel.registers();
  row.spill_bytes = kernel.spill_bytes();
  row.compiled = kernel.compiled();
  row.blocks = blocks;
  return row;
}

}  // namespace

bool has_aligned_pairs(const ConstTensorView& view) {
  const auto bytes = static_cast<std::uintptr_t>(2 * dtype_bytes(view.dtype));
  const Strides strides = strides_of(view);
  return reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0 && strides.batch % 2 == 0 && strides.token % 2 == 0 &&
         strides.head % 2 == 0;
}

bool has_whole_pieces(const ConstTensorView& view, std::int64_t dim) {
  return row_source(view).piece_bytes == 16 && dim * dtype_bytes(view.dtype) % 16 == 0;
}

Sm80BackwardRows::Sm80BackwardRows(int device, const Problem& problem, std::int64_t line,
                                   const Sm80BackwardKernel& keys, WorkspaceLayout& layout)
    : problem_(problem),
      rows_kernel_(Kernel::load(device, kImage, "gradient_rows")),
      sinks_kernel_(Kernel::load(device, kImage, "gradient_sinks")),
      convert_kernel_(keys.role() == sm80::BackwardRole::joint
                          ? &Kernel::load(device, kImage, "gradient_convert_" + std::to_string(keys.config().warps))
                          : nullptr),
      config_(keys.config()) {
  const bool alike = uniform_lengths(problem);
  line_rows_ = alike ? round_up(problem.seq_q, line) : keys.table().line;
  lines_of_head_ = alike ? problem.batch : 1;
  count_ = checked_mul(checked_mul(lines_of_head_, problem.heads_q, "rows"), line_rows_, "rows");
  if (count_ > std::int64_t{1} << 31) {
    fail_argument("batch * heads_q * seq_q", std::to_string(count_) + " rows", "up to 2^31 rows");
  }
  lse_log2_ = layout.add<float>(count_);
  delta_ = layout.add<float>(count_);
}

std::int64_t Sm80BackwardRows::blocks() const { return ceil_div(count_ * kLanes, kThreads); }

KernelFacts Sm80BackwardRows::facts() const { return facts_of(kImage, rows_kernel_, kThreads, blocks()); }

KernelFacts Sm80BackwardRows::convert_facts() const {
  return facts_of("gradient_convert", *convert_kernel_, config_.threads(), count_ / config_.tile_q);
}

void Sm80BackwardRows::prepare(const BackwardTensors& tensors, const Batch& batch, const Sums& sums,
                               std::span<std::byte> workspace, void* stream) const {
  if (count_ == 0) {
    return;
  }
  GradientRows params{};
  params.out = tensors.out.data;
  params.dout = tensors.dout.data;
  params.lse = static_cast<const float*>(tensors.lse.data);
  params.dlse = static_cast<const float*>(tensors.dlse.data);
  params.out_strides = strides_of(tensors.out);
  params.dout_strides = strides_of(tensors.dout);
  params.lse_strides = lse_strides_of(tensors.lse);
  params.dlse_strides = lse_strides_of(tensors.dlse);
  params.lse_log2 = lse_log2_.in(workspace);
  params.delta = delta_.in(workspace);
  params.dq_sum = sums.terms == nullptr ? sums.dq : nullptr;  // in turns the first one stores
  params.numbers = sums.terms;
  params.number_count = sums.term_count;
  params.batch = batch;
  params.rows = count_;
  params.line_rows = static_cast<std::int32_t>(line_rows_);
  params.dim_v = static_cast<std::int32_t>(problem_.dim_v);
  params.dq_columns = config_.columns;
  params.element = gradient_element(tensors.out.dtype);
  params.aligned = row_source(tensors.out).piece_bytes == 16 && row_source(tensors.dout).piece_bytes == 16 ? 1 : 0;
  rows_kernel_.launch({blocks(), kThreads, 0}, params, stream);
}

void Sm80BackwardRows::convert(const BackwardTensors& tensors, const Batch& batch, const Sums& sums,
                               void* stream) const {
  if (count_ == 0) {
    return;
  }
  GradientConvert params{};
  params.dq_sum = sums.dq;
  params.dq = tensors.dq.data;
  params.dq_strides = strides_of(tensors.dq);
  params.batch = batch;
  params.line_rows = static_cast<std::int32_t>(line_rows_);
  params.tile_q = config_.tile_q;
  params.columns = config_.columns;
  params.warps = config_.warps;
  params.dim_qk = static_cast<std::int32_t>(problem_.dim_qk);
  params.band = band_of(problem_.mask);
  params.tile_k = config_.tile_k;
  params.stored_first = sums.terms != nullptr ? 1 : 0;
  params.scale = problem_.softmax_scale();
  params.element = gradient_element(tensors.dq.dtype);
  params.aligned = has_aligned_pairs(tensors.dq) ? 1 : 0;
  params.whole_pieces = has_whole_pieces(tensors.dq, problem_.dim_qk) ? 1 : 0;
  convert_kernel_->launch({count_ / config_.tile_q, config_.threads(), 0}, params, stream);
}

void Sm80BackwardRows::sum_sinks(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
  SinkRows params{};
  params.lse_log2 = lse_log2_.in(workspace);
  params.delta = delta_.in(workspace);
  params.sinks = static_cast<const float*>(tensors.score.sinks.data);
  params.dsinks = static_cast<float*>(tensors.dsinks.data);
  params.sinks_stride = tensors.score.sinks.strides[0];
  params.dsinks_stride = tensors.dsinks.strides[0];
  params.line_rows = static_cast<std::int32_t>(line_rows_);
  params.lines = static_cast<std::int32_t>(lines_of_head_);
  params.heads = static_cast<std::int32_t>(problem_.heads_q);
  sinks_kernel_.launch({problem_.heads_q, kSinkThreads, 0}, params, stream);
}

}  // namespace tessera::internal
