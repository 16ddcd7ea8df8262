#include <algorithm>
#include <optional>

#include "core/fail.h"
#include "cuda/common/gradient_rows.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/schedule.h"
#include "cuda/score_params.h"
#include "cuda/sm80/bwd/select.h"
#include "cuda/sm80/executable.h"
#include "cuda/sm80/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

constexpr std::string_view kRowsImage = "gradient_rows";
constexpr int kRowThreads = 256;
constexpr int kRowLanes = 8;
constexpr int kSinkThreads = 1024;
constexpr std::int64_t kMostItems = std::int64_t{1} << 30;

sm80::BackwardInput backward_input(const ConstTensorView& view, DType dtype) {
  const bool widened = view.dtype != dtype;
  return {view.data, strides_of(view), !widened && row_source(view).piece_bytes == 16 ? 1 : 0, widened ? 1 : 0};
}

bool pairs_are_aligned(const ConstTensorView& view, const Strides& strides) {
  const auto bytes = static_cast<std::uintptr_t>(2 * dtype_bytes(view.dtype));
  return reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0 && strides.batch % 2 == 0 && strides.token % 2 == 0 &&
         strides.head % 2 == 0;
}

// Whether rows are made of pieces of 16 bytes.
bool has_whole_pieces(const ConstTensorView& view, std::int64_t dim) {
  return row_source(view).piece_bytes == 16 && dim * dtype_bytes(view.dtype) % 16 == 0;
}

sm80::BackwardOutput backward_output(const TensorView& view, std::int64_t dim) {
  const Strides strides = strides_of(view);
  return {view.data, strides, view.dtype == DType::float32 ? 1 : 0, pairs_are_aligned(view, strides) ? 1 : 0,
          has_whole_pieces(view, dim) ? 1 : 0};
}

GradientElement gradient_element(DType dtype) {
  return dtype == DType::float32    ? GradientElement::float32
         : dtype == DType::bfloat16 ? GradientElement::bfloat16
                                    : GradientElement::float16;
}

// Whether the order of the terms of dQ can be computed: every head has the same tiles.
bool takes_turns(const Problem& problem) { return uniform_lengths(problem) && !needs_lists(problem.mask); }

// One kernel of the pass, with what its grid and its tiles need.
class Sm80BackwardKernel {
 public:
  Sm80BackwardKernel(const Problem& problem, const PlanOptions& options, const Sm80BackwardRow& row, std::int64_t line)
      : row_(row), image_(image_of(row, problem)), kernel_(Kernel::load(options.device.index, image_)) {
    if (needs_lists(problem.mask)) {
      listed_.emplace(options.device.index, problem, row.config.tile_q, row.config.tile_k);
    }
    if (row.role != sm80::BackwardRole::bias) {
      count_items(problem, line);
    }
  }

  const sm80::BackwardConfig& config() const { return row_.config; }
  sm80::BackwardRole role() const { return row_.role; }
  const SequenceTable& table() const { return table_; }
  int shared_bytes() const { return config().shared_bytes(role()); }
  std::int64_t items() const { return items_; }
  // Blocks that are on the device at the same time.
  std::int64_t resident_blocks(const CudaDeviceInfo& device) const {
    constexpr std::int64_t kReservedBytes =
        1024;  // of a block, and of what a multiprocessor has beyond the most of a block
    const std::int64_t fit = (device.shared_bytes + kReservedBytes) / (shared_bytes() + kReservedBytes);
    return device.multiprocessors * std::clamp<std::int64_t>(fit, 1, config().blocks);
  }

  // What differs between the kernels of a pass.
  void set_tiles(sm80::BackwardParams& params) const {
    params.is_listed = listed_ ? 1 : 0;
    params.listed = listed_ ? listed_->view() : Listed{};
    params.items = static_cast<std::int32_t>(items_);
    params.tiles_of_head = tiles_of_head_;
    params.section_heads = section_heads_;
    params.chunks = static_cast<std::int32_t>(ceil_div(std::max(params.dim_qk, params.dim_v), config().columns));
  }
  void launch(const sm80::BackwardParams& params, std::int64_t blocks, void* stream, bool cooperative = false) const {
    if (blocks > 0) {
      kernel_.launch({blocks, config().threads(), shared_bytes(), cooperative}, params, stream);
    }
  }

  KernelFacts facts(const CudaDeviceInfo& device) const {
    KernelFacts facts;
    facts.name = image_.name;
    facts.tile_q = config().tile_q;
    facts.tile_k = config().tile_k;
    facts.stages = config().stages;
    facts.threads = config().threads();
    facts.registers = kernel_.registers();
    facts.spill_bytes = kernel_.spill_bytes();
    facts.shared_bytes = shared_bytes();
    facts.blocks = items_;
    facts.waves = static_cast<double>(items_) / static_cast<double>(resident_blocks(device));
    return facts;
  }

 private:
  // Under a band tiles differ in length: the longest begin first, inside sections of heads whose other operands and dQ stay in
  // the L2 cache.
  void count_items(const Problem& problem, std::int64_t line) {
    constexpr std::int64_t kSectionBytes = std::int64_t{16} << 20;
    const bool of_queries = role() == sm80::BackwardRole::queries;
    std::int64_t lines = of_queries ? problem.heads_q : problem.heads_kv;
    const std::int64_t tile = of_queries ? config().tile_q : config().tile_k;
    std::int64_t tiles = 0;
    if (uniform_lengths(problem)) {
      tiles = ceil_div(of_queries ? problem.seq_q : problem.seq_k, tile);
      lines = checked_mul(lines, problem.batch, "batch * heads");
    } else {
      table_ = sequence_table(problem, of_queries, tile, line);
      tiles = table_.tiles;
    }
    const std::int64_t chunks = ceil_div(std::max(problem.dim_qk, problem.dim_v), config().columns);
    items_ = checked_mul(checked_mul(lines, tiles, "tiles"), chunks, "tiles");
    if (items_ > kMostItems) {
      fail_argument("batch * heads * seq", std::to_string(items_) + " tiles", "up to 2^30 tiles");
    }
    tiles_of_head_ = static_cast<std::int32_t>(tiles);
    const std::int64_t head_bytes = std::max<std::int64_t>(
        1, problem.group_size() * problem.seq_q * (problem.dim_qk + problem.dim_v) * 2 * dtype_bytes(problem.dtype));
    section_heads_ =
        static_cast<std::int32_t>(problem.mask.has_band() ? std::clamp<std::int64_t>(kSectionBytes / head_bytes, 1,
                                                                                     std::max<std::int64_t>(lines, 1))
                                                          : 1);
  }

  const Sm80BackwardRow& row_;
  KernelImage image_;
  const Kernel& kernel_;
  std::optional<ListedSchedule> listed_;
  SequenceTable table_;
  std::int64_t items_ = 0;
  std::int32_t tiles_of_head_ = 0;
  std::int32_t section_heads_ = 1;
};

class Sm80BackwardExecutable final : public DeviceExecutable {
 public:
  Sm80BackwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        rows_kernel_(Kernel::load(device(), kRowsImage, "gradient_rows")),
        sinks_kernel_(Kernel::load(device(), kRowsImage, "gradient_sinks")) {
    const auto choose = [&](sm80::BackwardRole role) { return choose_sm80_backward(problem, options, role); };
    const Sm80BackwardRow* keys =
        options.deterministic && !takes_turns(problem) ? nullptr : choose(sm80::BackwardRole::joint);
    keys = keys != nullptr ? keys : choose(sm80::BackwardRole::keys);
    const Sm80BackwardRow* queries =
        keys->role == sm80::BackwardRole::joint ? nullptr : choose(sm80::BackwardRole::queries);
    const Sm80BackwardRow* bias = problem.bias_shape ? choose(sm80::BackwardRole::bias) : nullptr;
    std::vector<KernelImage> images;
    for (const Sm80BackwardRow* row : {keys, queries, bias}) {
      if (row != nullptr) {
        images.push_back(image_of(*row, problem));
      }
    }
    Kernel::load_all(device(), images);
    const std::int64_t line = std::max({keys->config.tile_q, queries != nullptr ? queries->config.tile_q : 0,
                                        bias != nullptr ? bias->config.tile_q : 0});
    keys_.emplace(problem, options, *keys, line);
    if (queries != nullptr) {
      queries_.emplace(problem, options, *queries, line);
    } else {
      convert_kernel_ = &Kernel::load(device(), kRowsImage, "gradient_convert_" + std::to_string(keys->config.warps));
    }
    if (bias != nullptr) {
      bias_.emplace(problem, options, *bias, line);
    }
    plan_rows(line);
    if (!queries_ && takes_turns(problem)) {
      plan_turns(*keys, options.deterministic);
    }
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = keys_->config().tile_q;
    facts.tile_k = keys_->config().tile_k;
    facts.workspace_bytes = layout_.bytes();
    const auto add = [&](std::string_view name, const Kernel& kernel, int threads, std::int64_t blocks) {
      KernelFacts row;
      row.name = name;
      row.threads = threads;
      row.registers = kernel.registers();
      row.spill_bytes = kernel.spill_bytes();
      row.blocks = blocks;
      facts.kernels.push_back(row);
    };
    add(kRowsImage, rows_kernel_, kRowThreads, row_blocks());
    facts.kernels.push_back(keys_->facts(properties_));
    if (queries_) {
      facts.kernels.push_back(queries_->facts(properties_));
    } else {
      add("gradient_convert", *convert_kernel_, keys_->config().threads(), convert_blocks());
    }
    return facts;
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    check_memory(tensors);
    const Batch of_keys = batch_in(*keys_, key_sequences_, workspace, stream);
    const Batch of_queries = queries_ ? batch_in(*queries_, query_sequences_, workspace, stream) : of_keys;
    prepare_rows(tensors, of_keys, workspace, stream);
    sm80::BackwardParams params = params_of(tensors, workspace);
    params.batch = of_keys;
    keys_->set_tiles(params);
    params.turns = turns_;
    if (turn_count_ > 0) {
      params.turns.terms = terms_.in(workspace);
      params.items = turn_items_;
    }
    keys_->launch(params, turn_count_ > 0 ? turn_blocks_ : keys_->items(), stream, turn_count_ > 0);
    params.turns = {};
    if (queries_) {
      params.batch = of_queries;
      queries_->set_tiles(params);
      queries_->launch(params, queries_->items(), stream);
    } else {
      convert(tensors, of_keys, workspace, stream);
    }
    if (!tensors.dbias.absent()) {
      params.batch = of_keys;
      run_bias(tensors, params, stream);
    }
    if (!tensors.dsinks.absent()) {
      run_sinks(tensors, workspace, stream);
    }
  }

 private:
  std::int64_t row_blocks() const { return ceil_div(rows_ * kRowLanes, kRowThreads); }
  std::int64_t convert_blocks() const { return rows_ / keys_->config().tile_q; }

  void plan_rows(std::int64_t line) {
    const Problem& problem = this->problem();
    if (uniform_lengths(problem)) {
      line_rows_ = round_up(problem.seq_q, line);
      lines_of_head_ = problem.batch;
    } else {
      line_rows_ = keys_->table().line;
      lines_of_head_ = 1;
      const auto count = static_cast<std::int64_t>(keys_->table().entries.size());
      key_sequences_ = layout_.add<SequenceEntry>(count);
      query_sequences_ = layout_.add<SequenceEntry>(count);
    }
    rows_ = checked_mul(checked_mul(lines_of_head_, problem.heads_q, "rows"), line_rows_, "rows");
    if (rows_ > std::int64_t{1} << 31) {
      fail_argument("batch * heads_q * seq_q", std::to_string(rows_) + " rows", "up to 2^31 rows");
    }
    lse_log2_ = layout_.add<float>(rows_);
    delta_ = layout_.add<float>(rows_);
    if (!queries_) {
      dq_sum_ = layout_.add<float>(checked_mul(rows_, keys_->config().columns, "dQ"));
    }
  }

  // See order.cuh.
  void plan_turns(const Sm80BackwardRow& row, bool deterministic) {
    const Problem& problem = this->problem();
    const std::int64_t lines = problem.batch * problem.heads_kv;
    const std::int64_t tiles = std::max<std::int64_t>(ceil_div(problem.seq_k, row.config.tile_k), 1);
    const std::int64_t most_blocks = keys_->resident_blocks(properties_);
    // Under a dense mask the blocks of a group start at different tiles of queries, two steps apart: a turn takes about as long
    // as a step. They are more where there are too few heads to keep all blocks busy.
    constexpr std::int64_t kStepsApart = 2;
    const std::int64_t starts = std::max(ceil_div(problem.seq_q, row.config.tile_q) / kStepsApart,
                                         most_blocks / std::max<std::int64_t>(lines, 1));
    const std::int64_t most = problem.mask.has_band() ? most_blocks : std::clamp<std::int64_t>(starts, 1, most_blocks);
    const std::int64_t group = ceil_div(tiles, ceil_div(tiles, most));
    turns_.group = static_cast<std::int32_t>(group);
    turns_.chunks = static_cast<std::int32_t>(ceil_div(tiles, group));
    turns_.paired = problem.mask.has_band() ? 1 : 0;
    if (!deterministic) {
      return;
    }
    const std::int64_t dealt = turns_.paired != 0 ? ceil_div(lines, 2) : lines;
    turn_items_ = static_cast<std::int32_t>(dealt);
    turn_blocks_ = std::min(dealt, most_blocks / group) * group;
    turn_count_ = rows_ / row.config.tile_q;
    terms_ = layout_.add<std::int32_t>(turn_count_);
  }

  void check_memory(const BackwardTensors& tensors) const {
    for (const auto& [name, view] : {std::pair<const char*, ConstTensorView>{"q", tensors.q},
                                     {"k", tensors.k},
                                     {"v", tensors.v},
                                     {"out", tensors.out},
                                     {"lse", tensors.lse},
                                     {"dout", tensors.dout},
                                     {"dlse", tensors.dlse},
                                     {"dq", tensors.dq},
                                     {"dk", tensors.dk},
                                     {"dv", tensors.dv},
                                     {"dbias", tensors.dbias},
                                     {"dsinks", tensors.dsinks}}) {
      if (!view.absent()) {
        require_on_device(name, view, device());
      }
    }
  }

  Batch batch_in(const Sm80BackwardKernel& kernel, const WorkspaceSlot<SequenceEntry>& slot,
                 std::span<std::byte> workspace, void* stream) const {
    const Batch batch = batch_of(problem(), slot.in(workspace));
    if (batch.sequences != nullptr) {
      write_table(device(), slot.in(workspace), kernel.table(), stream);
    }
    return batch;
  }

  void prepare_rows(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace,
                    void* stream) const {
    if (rows_ == 0) {
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
    params.dq_sum = queries_ || turn_count_ > 0 ? nullptr : dq_sum_.in(workspace);
    params.turns = turn_count_ > 0 ? terms_.in(workspace) : nullptr;
    params.turn_count = turn_count_;
    params.batch = batch;
    params.rows = rows_;
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    params.dq_columns = keys_->config().columns;
    params.element = gradient_element(tensors.out.dtype);
    params.aligned = row_source(tensors.out).piece_bytes == 16 && row_source(tensors.dout).piece_bytes == 16 ? 1 : 0;
    rows_kernel_.launch({row_blocks(), kRowThreads, 0}, params, stream);
  }

  sm80::BackwardParams params_of(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
    const DType dtype = problem().dtype;
    sm80::BackwardParams params{};
    params.q = backward_input(tensors.q, dtype);
    params.k = backward_input(tensors.k, dtype);
    params.v = backward_input(tensors.v, dtype);
    params.dout = backward_input(tensors.dout, dtype);
    params.dq = backward_output(tensors.dq, problem().dim_qk);
    params.dk = backward_output(tensors.dk, problem().dim_qk);
    params.dv = backward_output(tensors.dv, problem().dim_v);
    params.lse_log2 = lse_log2_.in(workspace);
    params.delta = delta_.in(workspace);
    params.dq_sum = queries_ ? nullptr : dq_sum_.in(workspace);
    params.band = band_of(problem().mask);
    params.score = score_params_of(tensors.score);
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    return params;
  }

  void convert(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace, void* stream) const {
    if (rows_ == 0) {
      return;
    }
    GradientConvert params{};
    params.dq_sum = dq_sum_.in(workspace);
    params.dq = tensors.dq.data;
    params.dq_strides = strides_of(tensors.dq);
    params.batch = batch;
    params.line_rows = static_cast<std::int32_t>(line_rows_);
    params.tile_q = keys_->config().tile_q;
    params.columns = keys_->config().columns;
    params.warps = keys_->config().warps;
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.band = band_of(problem().mask);
    params.tile_k = keys_->config().tile_k;
    params.stored_first = turn_count_ > 0 ? 1 : 0;
    params.scale = problem().softmax_scale();
    params.element = gradient_element(tensors.dq.dtype);
    params.aligned = pairs_are_aligned(tensors.dq, params.dq_strides) ? 1 : 0;
    params.whole_pieces = has_whole_pieces(tensors.dq, problem().dim_qk) ? 1 : 0;
    convert_kernel_->launch({convert_blocks(), keys_->config().threads(), 0}, params, stream);
  }

  // Blocks own tiles of dbias and sum over what it broadcasts, so that no sum depends on their order.
  void run_bias(const BackwardTensors& tensors, sm80::BackwardParams params, void* stream) const {
    const TensorView& view = tensors.dbias;
    const Problem& problem = this->problem();
    const sm80::BackwardConfig& config = bias_->config();
    sm80::BackwardBias& bias = params.dbias;
    bias.data = view.data;
    bias.is_float32 = view.dtype == DType::float32 ? 1 : 0;
    const std::int64_t units[4] = {1, 1, config.tile_q, config.tile_k};
    std::int64_t blocks = 1;
    for (std::size_t axis = 0; axis < 4; ++axis) {
      bias.extents[axis] = static_cast<std::int32_t>(view.shape[axis]);
      bias.strides[axis] = view.shape[axis] > 1 ? view.strides[axis] : 0;
      bias.parts[axis] = static_cast<std::int32_t>(ceil_div(view.shape[axis], units[axis]));
      blocks = checked_mul(blocks, bias.parts[axis], "tiles of dbias");
    }
    if (blocks > kMostItems) {
      fail_argument("dbias", view.describe(), "up to 2^30 tiles");
    }
    bias.batches = static_cast<std::int32_t>(problem.batch);
    bias.heads = static_cast<std::int32_t>(problem.heads_q);
    bias.query_tiles = static_cast<std::int32_t>(ceil_div(problem.seq_q, config.tile_q));
    bias.key_tiles = static_cast<std::int32_t>(ceil_div(problem.seq_k, config.tile_k));
    bias_->set_tiles(params);
    bias_->launch(params, blocks, stream);
  }

  void run_sinks(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
    GradientSinks params{};
    params.lse_log2 = lse_log2_.in(workspace);
    params.delta = delta_.in(workspace);
    params.sinks = static_cast<const float*>(tensors.score.sinks.data);
    params.dsinks = static_cast<float*>(tensors.dsinks.data);
    params.sinks_stride = tensors.score.sinks.strides[0];
    params.dsinks_stride = tensors.dsinks.strides[0];
    params.line_rows = line_rows_;
    params.lines = static_cast<std::int32_t>(lines_of_head_);
    params.heads = static_cast<std::int32_t>(problem().heads_q);
    sinks_kernel_.launch({problem().heads_q, kSinkThreads, 0}, params, stream);
  }

  const CudaDeviceInfo& properties_;
  const Kernel& rows_kernel_;
  const Kernel& sinks_kernel_;
  const Kernel* convert_kernel_ = nullptr;
  std::optional<Sm80BackwardKernel> keys_, queries_, bias_;

  std::int64_t rows_ = 0;       // of statistics
  std::int64_t line_rows_ = 0;  // of a line: a head of a sequence, or a head where sequences differ
  std::int64_t lines_of_head_ = 0;
  sm80::BackwardTurns turns_{};
  std::int64_t turn_count_ = 0;  // 0: dQ is not summed in turns
  std::int64_t turn_blocks_ = 0;
  std::int32_t turn_items_ = 0;
  WorkspaceLayout layout_;
  WorkspaceSlot<std::int32_t> terms_;
  WorkspaceSlot<float> lse_log2_, delta_, dq_sum_;
  WorkspaceSlot<SequenceEntry> key_sequences_, query_sequences_;
};

}  // namespace

std::optional<std::string> sm80_backward_missing(const Problem& problem, const PlanOptions& options) {
  const auto has = [&](sm80::BackwardRole role) { return choose_sm80_backward(problem, options, role) != nullptr; };
  const bool has_joint = (!options.deterministic || takes_turns(problem)) && has(sm80::BackwardRole::joint);
  const bool has_pass = has_joint || (has(sm80::BackwardRole::keys) && has(sm80::BackwardRole::queries));
  if (has_pass && (!problem.bias_shape || has(sm80::BackwardRole::bias))) {
    return std::nullopt;
  }
  return sm80_no_kernel(problem,
                        std::string(element_name(problem.dtype)) + ": this build has no backward kernel for it");
}

std::unique_ptr<const Executable> make_sm80_backward(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<Sm80BackwardExecutable>(problem, options);
}

}  // namespace tessera::internal
