#include <algorithm>
#include <array>
#include <numbers>

#include "core/fail.h"
#include "cuda/common/backward_rows.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/sm90/bwd/config.h"
#include "cuda/sm90/bwd_wide/config.h"
#include "cuda/sm90/executable.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using sm90::BackwardConfig;
using sm90::BackwardParams;
using sm90::BackwardWideConfig;

// What the launcher asks of a row of either table.
struct BackwardKernel {
  std::string_view family;  // the first part of the images' names
  int head_dim, tile_q, tile_k, stages;
  int dq_columns;
  int shared_bytes;
  int turns_of_tile;  // at dQ of a tile of queries
};

constexpr BackwardKernel describe(const BackwardConfig& config) {
  return {"sm90_backward", config.head_dim,     config.tile_q,         config.tile_k,
          config.stages,   config.dq_columns(), config.shared_bytes(), 1};
}

constexpr BackwardKernel describe(const BackwardWideConfig& config) {
  return {"sm90_backward_wide", config.head_dim,     config.tile_q,         config.tile_k,
          config.stages,        config.dq_columns(), config.shared_bytes(), BackwardWideConfig::kTurnsOfTile};
}

// In ascending order of head dims.
constexpr std::array kKernels{
#define TESSERA_SM90_BACKWARD(head_dim, tile_q, tile_k, stages, set) \
  describe(BackwardConfig{head_dim, tile_q, tile_k, stages}),
#include "cuda/sm90/bwd/table.def"
#undef TESSERA_SM90_BACKWARD
#define TESSERA_SM90_BACKWARD_WIDE(head_dim, tile_q, tile_k, stages, set) \
  describe(BackwardWideConfig{head_dim, tile_q, tile_k, stages}),
#include "cuda/sm90/bwd_wide/table.def"
#undef TESSERA_SM90_BACKWARD_WIDE
};

std::string image_name(const BackwardKernel& kernel, const Problem& problem) {
  std::string name(kernel.family);
  for (const int part : {kernel.head_dim, kernel.tile_q, kernel.tile_k, kernel.stages}) {
    name += "_" + std::to_string(part);
  }
  return name.append("_")
      .append(mask_kind_name(mask_kind(problem.mask)))
      .append("_")
      .append(element_name(problem.dtype));
}

// That of the smallest head dim that holds the problem's; null when none is built.
const BackwardKernel* choose_kernel(const Problem& problem) {
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const auto found = std::find_if(kKernels.begin(), kKernels.end(), [&](const BackwardKernel& kernel) {
    return kernel.head_dim >= dim && Kernel::exists(image_name(kernel, problem));
  });
  return found == kKernels.end() ? nullptr : &*found;
}

class BackwardExecutable final : public DeviceExecutable {
 public:
  BackwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        tiles_(*choose_kernel(problem)),
        image_(image_name(tiles_, problem)),
        kernel_(Kernel::load(device(), image_)),
        rows_kernel_(Kernel::load(device(), "backward_rows", "backward_rows_" + std::to_string(lanes()))),
        convert_kernel_(Kernel::load(device(), "backward_rows", "backward_convert")),
        deterministic_(options.deterministic) {
    plan_tiles();
    plan_workspace();
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = tiles_.tile_q;
    facts.tile_k = tiles_.tile_k;
    facts.workspace_bytes = layout_.bytes();
    const auto add = [&](const std::string& name, const Kernel& kernel, int threads, std::int64_t blocks) {
      KernelFacts row;
      row.name = name;
      row.threads = threads;
      row.registers = kernel.registers();
      row.spill_bytes = kernel.spill_bytes();
      row.blocks = blocks;
      facts.kernels.push_back(row);
      return &facts.kernels.back();
    };
    add("backward_rows", rows_kernel_, kRowThreads, row_blocks());
    KernelFacts* const row = add(image_, kernel_, BackwardConfig::kThreads, blocks_);
    row->tile_q = tiles_.tile_q;
    row->tile_k = tiles_.tile_k;
    row->stages = tiles_.stages;
    row->shared_bytes = tiles_.shared_bytes;
    row->waves = static_cast<double>(order_.tiles) / static_cast<double>(blocks_);
    add("backward_convert", convert_kernel_, kConvertThreads, convert_blocks());
    return facts;
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    for (const auto& [name, view] : {std::pair<const char*, ConstTensorView>{"q", tensors.q},
                                     {"k", tensors.k},
                                     {"v", tensors.v},
                                     {"out", tensors.out},
                                     {"dout", tensors.dout},
                                     {"dq", tensors.dq},
                                     {"dk", tensors.dk},
                                     {"dv", tensors.dv}}) {
      require_copyable(name, view, device());
    }
    require_on_device("lse", tensors.lse, device());
    if (!tensors.dlse.absent()) {
      require_on_device("dlse", tensors.dlse, device());
    }
    if (rows_ == 0 || order_.tiles_of_head == 0) {
      for (const TensorView* view : {&tensors.dq, &tensors.dk, &tensors.dv}) {
        if (view->elements() > 0) {
          fill_tokens(device(), *view, stream);
        }
      }
      return;
    }
    const Batch batch = batch_of(problem(), sequences_.in(workspace));
    if (batch.sequences != nullptr) {
      write_table(device(), sequences_.in(workspace), query_table_.entries.data(),
                  static_cast<std::int64_t>(query_table_.entries.size() * sizeof(SequenceEntry) / sizeof(std::int32_t)),
                  stream);
    }
    prepare(tensors, batch, workspace, stream);
    run_kernel(tensors, batch, workspace, stream);
    convert(tensors, batch, workspace, stream);
  }

 private:
  static constexpr int kRowThreads = 256;
  static constexpr int kConvertThreads = 256;

  int lanes() const { return problem().dim_v <= 64 ? 8 : problem().dim_v <= 128 ? 16 : 32; }
  std::int64_t row_blocks() const { return ceil_div(std::max(rows_ * lanes(), numbers_count_), kRowThreads); }
  std::int64_t convert_blocks() const { return rows_ / tiles_.tile_q; }

  void plan_tiles() {
    const Problem& problem = this->problem();
    std::int64_t lines = problem.heads_kv;
    if (uniform_lengths(problem)) {
      order_.tiles_of_head = static_cast<std::int32_t>(ceil_div(problem.seq_k, tiles_.tile_k));
      lines = checked_mul(problem.batch, problem.heads_kv, "batch * heads_kv");
      line_rows_ = round_up(problem.seq_q, tiles_.tile_q);
      rows_ = checked_mul(checked_mul(problem.batch, problem.heads_q, "rows"), line_rows_, "rows");
    } else {
      query_table_ = sequence_table(problem, false, tiles_.tile_k, tiles_.tile_q);
      order_.tiles_of_head = static_cast<std::int32_t>(query_table_.tiles);
      line_rows_ = query_table_.line;
      rows_ = checked_mul(problem.heads_q, line_rows_, "rows");
    }
    const std::int64_t tiles = checked_mul(lines, order_.tiles_of_head, "tiles");
    if (tiles > std::int64_t{1} << 30 || rows_ > std::int64_t{1} << 31) {
      fail_argument("batch * heads * seq", std::to_string(std::max(tiles, rows_)) + " tiles or rows",
                    "up to 2^30 tiles and 2^31 rows");
    }
    order_.tiles = static_cast<std::int32_t>(tiles);
    plan_order(std::max<std::int64_t>(lines, 1));
  }

  // Tiles of keys in sections of key heads that fit the L2 cache with their Q, dO and dQ, the longest tiles of a section
  // first. Where blocks take turns at dQ, heads are dealt to groups of blocks whose tiles take the same time, if all of a
  // head fits the device at once; longer heads in chunks. See BackwardVisits.
  void plan_order(std::int64_t lines) {
    constexpr std::int64_t kSectionBytes = std::int64_t{16} << 20;
    const Problem& problem = this->problem();
    const std::int64_t head_bytes =
        std::max<std::int64_t>(1, problem.group_size() * problem.seq_q * (problem.dim_qk + problem.dim_v) * 4);
    const std::int64_t of_head = std::max<std::int64_t>(order_.tiles_of_head, 1);
    const MaskKind mask = mask_kind(problem.mask);
    const bool sections = uniform_lengths(problem) && mask == MaskKind::causal;
    order_.section_heads =
        static_cast<std::int32_t>(sections ? std::clamp<std::int64_t>(kSectionBytes / head_bytes, 1, lines) : 1);
    order_.dq_order = deterministic_ ? sm90::DqOrder::chain : sm90::DqOrder::together;
    blocks_ = std::min<std::int64_t>(order_.tiles, properties_.multiprocessors);
    if (deterministic_ && uniform_lengths(problem)) {
      const std::int64_t chunks = ceil_div(of_head, properties_.multiprocessors);
      const std::int64_t group = ceil_div(of_head, chunks);
      order_.group = static_cast<std::int32_t>(group);
      order_.dealt_of_head = static_cast<std::int32_t>(group * chunks);
      order_.paired = mask == MaskKind::causal ? 1 : 0;
      order_.dq_order = sm90::DqOrder::together;
      const std::int64_t heads = order_.paired != 0 ? ceil_div(lines, 2) : lines;
      order_.tiles = static_cast<std::int32_t>(checked_mul(heads, order_.dealt_of_head, "tiles"));
      blocks_ = std::min(heads, properties_.multiprocessors / group) * group;
    }
  }

  void plan_workspace() {
    numbers_count_ = 1 + (deterministic_ ? tiles_.turns_of_tile * rows_ / tiles_.tile_q : 0);
    lse_log2_ = layout_.add<float>(rows_);
    delta_ = layout_.add<float>(rows_);
    numbers_ = layout_.add<std::int32_t>(numbers_count_);
    dq_sum_ = layout_.add<float>(checked_mul(rows_, tiles_.dq_columns, "dQ"));
    if (!uniform_lengths(problem())) {
      sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(query_table_.entries.size()));
    }
  }

  void prepare(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace, void* stream) const {
    BackwardRows params{};
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
    params.dq_sum = deterministic_ ? nullptr : dq_sum_.in(workspace);
    params.numbers = numbers_.in(workspace);
    params.number_count = numbers_count_;
    params.batch = batch;
    params.rows = rows_;
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    params.dq_columns = tiles_.dq_columns;
    params.bfloat16 = problem().dtype == DType::bfloat16 ? 1 : 0;
    rows_kernel_.launch({row_blocks(), kRowThreads, 0}, params, stream);
  }

  void run_kernel(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace,
                  void* stream) const {
    BackwardParams params{};
    params.q = tensor_map(tensors.q, tiles_.tile_q);
    params.k = tensor_map(tensors.k, tiles_.tile_k);
    params.v = tensor_map(tensors.v, tiles_.tile_k);
    params.dout = tensor_map(tensors.dout, tiles_.tile_q);
    params.dk = tensors.dk.data;
    params.dv = tensors.dv.data;
    params.dk_strides = strides_of(tensors.dk);
    params.dv_strides = strides_of(tensors.dv);
    params.lse_log2 = lse_log2_.in(workspace);
    params.delta = delta_.in(workspace);
    params.dq_sum = dq_sum_.in(workspace);
    params.batch = batch;
    params.band = band_of(problem().mask);
    params.order = order_;
    params.order.counter = order_.group > 0 ? nullptr : numbers_.in(workspace);
    params.order.turns = deterministic_ ? numbers_.in(workspace) + 1 : nullptr;
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    params.scale = problem().softmax_scale();
    params.scale_log2 = static_cast<float>(problem().softmax_scale() * std::numbers::log2e);
    kernel_.launch({blocks_, BackwardConfig::kThreads, tiles_.shared_bytes, deterministic_}, params, stream);
  }

  void convert(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace, void* stream) const {
    BackwardConvert params{};
    params.dq_sum = dq_sum_.in(workspace);
    params.dq = tensors.dq.data;
    params.dq_strides = strides_of(tensors.dq);
    params.batch = batch;
    params.band = band_of(problem().mask);
    params.mask = static_cast<std::int32_t>(mask_kind(problem().mask));
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.tile_q = tiles_.tile_q;
    params.tile_k = tiles_.tile_k;
    params.dq_columns = tiles_.dq_columns;
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.scale = problem().softmax_scale();
    params.bfloat16 = problem().dtype == DType::bfloat16 ? 1 : 0;
    convert_kernel_.launch({convert_blocks(), kConvertThreads, 0}, params, stream);
  }

  const CudaDeviceInfo& properties_;
  const BackwardKernel& tiles_;
  std::string image_;
  const Kernel& kernel_;
  const Kernel& rows_kernel_;
  const Kernel& convert_kernel_;
  bool deterministic_;

  sm90::BackwardOrder order_{};
  SequenceTable query_table_;
  std::int64_t rows_ = 0;       // of statistics
  std::int64_t line_rows_ = 0;  // of one head
  std::int64_t numbers_count_ = 0;
  std::int64_t blocks_ = 0;
  WorkspaceLayout layout_;
  WorkspaceSlot<float> lse_log2_, delta_, dq_sum_;
  WorkspaceSlot<std::int32_t> numbers_;  // the counter, then the turns
  WorkspaceSlot<SequenceEntry> sequences_;
};

}  // namespace

std::optional<std::string> backward_missing(const Problem& problem, const PlanOptions& /*options*/) {
  if (choose_kernel(problem) != nullptr) {
    return std::nullopt;
  }
  return "head dim " + std::to_string(std::max(problem.dim_qk, problem.dim_v)) + " in " +
         std::string(element_name(problem.dtype)) +
         ": this build has no backward kernel for it (configure with -DTESSERA_CUDA_KERNELS=all)";
}

std::unique_ptr<const Executable> make_backward(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<BackwardExecutable>(problem, options);
}

}  // namespace tessera::internal
