#include <algorithm>
#include <optional>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/score_params.h"
#include "cuda/sm80/bwd/rows.h"
#include "cuda/sm80/bwd/select.h"
#include "cuda/sm80/bwd/tile_kernel.h"
#include "cuda/sm80/executable.h"
#include "cuda/sm80/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

sm80::BackwardInput backward_input(const ConstTensorView& view, DType dtype) {
  const bool widened = view.dtype != dtype;
  return {view.data, strides_of(view), !widened && row_source(view).piece_bytes == 16 ? 1 : 0, widened ? 1 : 0};
}

sm80::BackwardOutput backward_output(const TensorView& view, std::int64_t dim) {
  return {view.data, strides_of(view), view.dtype == DType::float32 ? 1 : 0, has_aligned_pairs(view) ? 1 : 0,
          has_whole_pieces(view, dim) ? 1 : 0};
}

// Whether the order of the terms of dQ can be computed: every head has the same tiles.
bool takes_turns(const Problem& problem) { return uniform_lengths(problem) && !needs_lists(problem.mask); }

class Sm80BackwardExecutable final : public DeviceExecutable {
 public:
  Sm80BackwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options), properties_(cuda_device(options.device.index)) {
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
    }
    if (bias != nullptr) {
      bias_.emplace(problem, options, *bias, line);
    }
    rows_.emplace(device(), this->problem(), line, *keys_, layout_);
    if (!uniform_lengths(problem)) {
      const auto count = static_cast<std::int64_t>(keys_->table().entries.size());
      key_sequences_ = layout_.add<SequenceEntry>(count);
      query_sequences_ = layout_.add<SequenceEntry>(count);
    }
    if (!queries_) {
      dq_sum_ = layout_.add<float>(checked_mul(rows_->count(), keys_->config().columns, "dQ"));
    }
    if (!queries_ && takes_turns(problem)) {
      plan_turns(*keys, options.deterministic);
    }
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = keys_->config().tile_q;
    facts.tile_k = keys_->config().tile_k;
    facts.workspace_bytes = layout_.bytes();
    facts.kernels.push_back(rows_->facts());
    facts.kernels.push_back(keys_->facts(properties_));
    facts.kernels.push_back(queries_ ? queries_->facts(properties_) : rows_->convert_facts());
    return facts;
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    check_memory(tensors);
    const Batch of_keys = batch_in(*keys_, key_sequences_, workspace, stream);
    const Batch of_queries = queries_ ? batch_in(*queries_, query_sequences_, workspace, stream) : of_keys;
    const Sm80BackwardRows::Sums sums{queries_ ? nullptr : dq_sum_.in(workspace),
                                      turn_count_ > 0 ? terms_.in(workspace) : nullptr, turn_count_};
    rows_->prepare(tensors, of_keys, sums, workspace, stream);
    sm80::BackwardParams params = params_of(tensors, workspace);
    params.batch = of_keys;
    keys_->set_tiles(params);
    params.turns = turns_;
    params.dq_sum = sums.dq;
    if (turn_count_ > 0) {
      params.turns.terms = sums.terms;
      params.items = turn_items_;
    }
    keys_->launch(params, turn_count_ > 0 ? turn_blocks_ : keys_->items(), stream, turn_count_ > 0);
    params.turns = {};
    if (queries_) {
      params.batch = of_queries;
      queries_->set_tiles(params);
      queries_->launch(params, queries_->items(), stream);
    } else {
      rows_->convert(tensors, of_keys, sums, stream);
    }
    if (!tensors.dbias.absent()) {
      params.batch = of_keys;
      run_bias(tensors, params, stream);
    }
    if (!tensors.dsinks.absent()) {
      rows_->sum_sinks(tensors, workspace, stream);
    }
  }

 private:
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
    turn_count_ = rows_->count() / row.config.tile_q;
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
    params.lse_log2 = rows_->lse_log2(workspace);
    params.delta = rows_->delta(workspace);
    params.band = band_of(problem().mask);
    params.score = score_params_of(tensors.score);
    params.line_rows = static_cast<std::int32_t>(rows_->line_rows());
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    return params;
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
    if (blocks > kMostSm80BackwardItems) {
      fail_argument("dbias", view.describe(), "up to 2^30 tiles");
    }
    bias.batches = static_cast<std::int32_t>(problem.batch);
    bias.heads = static_cast<std::int32_t>(problem.heads_q);
    bias.query_tiles = static_cast<std::int32_t>(ceil_div(problem.seq_q, config.tile_q));
    bias.key_tiles = static_cast<std::int32_t>(ceil_div(problem.seq_k, config.tile_k));
    bias_->set_tiles(params);
    bias_->launch(params, blocks, stream);
  }

  const CudaDeviceInfo& properties_;
  std::optional<Sm80BackwardKernel> keys_, queries_, bias_;
  std::optional<Sm80BackwardRows> rows_;

  sm80::BackwardTurns turns_{};
  std::int64_t turn_count_ = 0;  // 0: dQ is not summed in turns
  std::int64_t turn_blocks_ = 0;
  std::int32_t turn_items_ = 0;
  WorkspaceLayout layout_;
  WorkspaceSlot<std::int32_t> terms_;
  WorkspaceSlot<float> dq_sum_;
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
