#include <algorithm>
#include <array>
#include <numbers>

#include "core/fail.h"
#include "cuda/common/backward_rows.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/schedule.h"
#include "cuda/score_params.h"
#include "cuda/sm90/bwd/config.h"
#include "cuda/sm90/bwd/listed_plan.h"
#include "cuda/sm90/bwd/order_plan.h"
#include "cuda/sm90/bwd/statistics.h"
#include "cuda/sm90/bwd_wide/launch.h"
#include "cuda/sm90/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using sm90::BackwardConfig;
using sm90::BackwardParams;

// In ascending order of head dims.
constexpr std::array kConfigs{
#define TESSERA_SM90_BACKWARD(head_dim, tile_q, tile_k, stages, set) BackwardConfig{head_dim, tile_q, tile_k, stages},
#include "cuda/sm90/bwd/table.def"
};

constexpr std::array kProgramRows{
#define TESSERA_SM90_BACKWARD_PROGRAMS(head_dim, tile_q, tile_k, stages, program, set) \
  ProgramRow{head_dim, TableProgram::program},
#include "cuda/sm90/bwd/table.def"
};

KernelImage image_of(const BackwardConfig& config, const Problem& problem) {
  return sm90_image(kBackwardFamily, {config.head_dim, config.tile_q, config.tile_k, config.stages}, problem,
                    backward_features(problem));
}

// That of the smallest head dim that holds the problem's; null when there is none.
const BackwardConfig* choose_config(const Problem& problem) {
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const auto found = std::find_if(kConfigs.begin(), kConfigs.end(), [&](const BackwardConfig& config) {
    return config.head_dim >= dim && !Kernel::missing(image_of(config, problem));
  });
  return found == kConfigs.end() ? nullptr : &*found;
}

class BackwardExecutable final : public DeviceExecutable {
 public:
  BackwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        tiles_(*choose_config(problem)),
        image_(image_of(tiles_, problem)),
        kernel_(Kernel::load(device(), image_)),
        convert_kernel_(Kernel::load(device(), "backward_rows", "backward_convert")),
        deterministic_(options.deterministic),
        is_program_(backward_features(problem) != 0),
        statistics_(device(), problem, tiles_.tile_q, {1, options.deterministic, true, is_program_}, layout_) {
    plan_tiles();
    dq_sum_ = layout_.add<float>(checked_mul(statistics_.rows(), tiles_.dq_columns(), "dQ"));
    if (!uniform_lengths(problem)) {
      sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(query_table_.entries.size()));
    }
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
      row.compiled = kernel.compiled();
      row.blocks = blocks;
      facts.kernels.push_back(row);
      return &facts.kernels.back();
    };
    facts.kernels.push_back(statistics_.facts());
    KernelFacts* const row = add(image_.name, kernel_, BackwardConfig::kThreads, blocks_);
    row->tile_q = tiles_.tile_q;
    row->tile_k = tiles_.tile_k;
    row->stages = tiles_.stages;
    row->shared_bytes = tiles_.shared_bytes(is_program_);
    row->waves = static_cast<double>(order_.tiles) / static_cast<double>(blocks_);
    if (!rounds_sums()) {
      add("backward_convert", convert_kernel_, kConvertThreads, convert_blocks());
    }
    return facts;
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    require_backward_tensors(tensors, device());
    if (statistics_.rows() == 0 || order_.tiles_of_head == 0) {
      zero_gradients(tensors, device(), stream);
      statistics_.sum_sinks(tensors, batch_of(problem(), nullptr), workspace, stream);
      return;
    }
    const Batch batch = batch_of(problem(), sequences_.in(workspace));
    if (batch.sequences != nullptr) {
      write_table(device(), sequences_.in(workspace), query_table_, stream);
    }
    statistics_.run(tensors, batch, deterministic_ ? nullptr : dq_sum_.in(workspace), tiles_.dq_columns(), workspace,
                    stream);
    run_kernel(tensors, batch, workspace, stream);
    statistics_.sum_sinks(tensors, batch, workspace, stream);
    if (!rounds_sums()) {
      convert(tensors, batch, workspace, stream);
    }
  }

 private:
  static constexpr int kConvertThreads = 256;
  static constexpr std::int64_t kSectionBytes = std::int64_t{16} << 20;
  static constexpr std::int64_t kListedSectionBytes = std::int64_t{32} << 20;

  // Whether the kernel itself rounds dQ, which it can where it knows when the last term is added. The more there is to round the
  // less of it falls into the time in which some blocks still add: then a kernel with more threads is faster.
  bool rounds_sums() const {
    constexpr std::int64_t kMostBytes = std::int64_t{64} << 20;
    return needs_lists(problem().mask) && deterministic_ &&
           statistics_.rows() * tiles_.dq_columns() * static_cast<std::int64_t>(sizeof(float)) <= kMostBytes;
  }
  std::int64_t convert_blocks() const { return statistics_.rows() / tiles_.tile_q; }

  void plan_tiles() {
    const Problem& problem = this->problem();
    std::int64_t lines = problem.heads_kv;
    if (uniform_lengths(problem)) {
      order_.tiles_of_head = static_cast<std::int32_t>(ceil_div(problem.seq_k, tiles_.tile_k));
      lines = checked_mul(problem.batch, problem.heads_kv, "batch * heads_kv");
    } else {
      query_table_ = sequence_table(problem, false, tiles_.tile_k, tiles_.tile_q);
      order_.tiles_of_head = static_cast<std::int32_t>(query_table_.tiles);
    }
    const std::int64_t tiles = checked_mul(lines, order_.tiles_of_head, "tiles");
    if (tiles > std::int64_t{1} << 30) {
      fail_argument("batch * heads * seq", std::to_string(tiles) + " tiles", "up to 2^30 tiles");
    }
    order_.tiles = static_cast<std::int32_t>(tiles);
    plan_order(std::max<std::int64_t>(lines, 1));
  }

  // Tiles of keys in sections of key heads that fit the L2 cache with their Q, dO and dQ, the longest tiles of a section
  // first. Where blocks take turns at dQ, heads are dealt to groups of blocks whose tiles take the same time, if all of a
  // head fits the device at once; longer heads in chunks. See order.h.
  void plan_order(std::int64_t lines) {
    order_.apart = 1;
    order_.span = std::max(order_.tiles_of_head, 1);
    if (needs_lists(this->problem().mask)) {
      plan_lists();
      return;
    }
    const Problem& problem = this->problem();
    const std::int64_t head_bytes = std::max<std::int64_t>(1, problem.seq_q * (problem.dim_qk + problem.dim_v) * 4);
    const std::int64_t of_head = std::max<std::int64_t>(order_.tiles_of_head, 1);
    const MaskKind mask = mask_kind(problem.mask);
    const bool sections = uniform_lengths(problem) && mask == MaskKind::causal;
    order_.section_heads = static_cast<std::int32_t>(
        sections ? std::clamp<std::int64_t>(kSectionBytes / (head_bytes * problem.group_size()), 1, lines) : 1);
    order_.way = deterministic_ ? sm90::Way::down : sm90::Way::up;
    blocks_ = std::min<std::int64_t>(order_.tiles, properties_.multiprocessors);
    // Without turns a counter balances better, but at 128 columns under a causal mask (2K to 16K tokens: 2 to 5 % slower).
    constexpr std::int64_t kManyTiles = 16;
    const bool grouped = deterministic_ || (mask == MaskKind::causal && tiles_.head_dim > 64 && of_head >= kManyTiles);
    if (grouped && uniform_lengths(problem)) {
      blocks_ = deal_to_groups({.lines = lines,
                                .tiles_of_head = of_head,
                                .head_bytes = head_bytes,
                                .query_tiles = ceil_div(std::max<std::int64_t>(problem.seq_q, 1), tiles_.tile_q),
                                .paired = mask == MaskKind::causal,
                                .two_steps = ceil_div(2 * tiles_.tile_q, tiles_.tile_k),
                                .multiprocessors = properties_.multiprocessors},
                               order_);
    }
  }

  void plan_lists() {
    const Problem& problem = this->problem();
    order_.section_heads = 1;
    blocks_ = std::min<std::int64_t>(order_.tiles, properties_.multiprocessors);
    if (order_.tiles == 0 || statistics_.rows() == 0) {
      return;
    }
    const ScheduleLists lists = list_schedules(problem, tiles_.tile_q, tiles_.tile_k, BitOrder::by_key);
    const ListedSizes sizes{tiles_.tile_k, order_.tiles_of_head, (problem.dim_qk + problem.dim_v) * 4,
                            kListedSectionBytes};
    const ListedPlay play =
        play_listed_backward(problem, lists, order_listed_tiles(problem, lists, ListedSide::keys, query_table_, sizes),
                             query_table_, statistics_.line_rows() / tiles_.tile_q, tiles_.tile_q, blocks_);
    schedule_ = std::make_unique<ListedSchedule>(device(), lists);
    tasks_memory_ = DeviceMemory(device(), play.tasks.size() * sizeof(sm90::ListedTask));
    tasks_memory_.copy_from(play.tasks.data(), tasks_memory_.bytes());
    terms_memory_ = DeviceMemory(device(), play.terms.size() * sizeof(sm90::ListedTerm));
    terms_memory_.copy_from(play.terms.data(), terms_memory_.bytes());
    if (rounds_sums()) {
      sums_memory_ = DeviceMemory(device(), play.sums.size() * sizeof(sm90::ListedSum));
      sums_memory_.copy_from(play.sums.data(), sums_memory_.bytes());
    }
    order_.tiles = static_cast<std::int32_t>(play.tasks.size());
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
    params.parts = statistics_.parts(workspace);
    params.lse_log2 = statistics_.lse_log2(workspace);
    params.delta = statistics_.delta(workspace);
    params.dq_sum = dq_sum_.in(workspace);
    params.batch = batch;
    params.band = band_of(problem().mask);
    params.order = order_;
    if (schedule_) {
      params.listed = {static_cast<const sm90::ListedTask*>(tasks_memory_.data()),
                       static_cast<const sm90::ListedTerm*>(terms_memory_.data()),
                       schedule_->view().bits,
                       static_cast<const sm90::ListedSum*>(sums_memory_.data()),
                       static_cast<std::int32_t>(sums_memory_.bytes() / sizeof(sm90::ListedSum)),
                       tensors.dq.data,
                       strides_of(tensors.dq)};
    }
    params.order.counter = order_.group > 0 ? nullptr : statistics_.numbers(workspace);
    params.order.turns = deterministic_ ? statistics_.numbers(workspace) + 1 : nullptr;
    params.line_rows = static_cast<std::int32_t>(statistics_.line_rows());
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    const float softcap = problem().softcap;
    params.scale = problem().softmax_scale();
    params.scale_log2 = static_cast<float>((softcap != 0 ? softcap : exponent_scale(problem())) * std::numbers::log2e);
    params.score_scale = softcap != 0 ? params.scale / softcap : 1.0F;
    params.score = score_params_of(tensors.score);
    kernel_.launch({blocks_, BackwardConfig::kThreads, tiles_.shared_bytes(is_program_), deterministic_}, params,
                   stream);
  }

  void convert(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace, void* stream) const {
    BackwardConvert params{};
    params.dq_sum = dq_sum_.in(workspace);
    params.dq = tensors.dq.data;
    params.dq_strides = strides_of(tensors.dq);
    params.batch = batch;
    params.band = band_of(problem().mask);
    params.mask = static_cast<std::int32_t>(mask_kind(problem().mask));
    if (schedule_) {
      params.listed = schedule_->view();
    }
    params.line_rows = static_cast<std::int32_t>(statistics_.line_rows());
    params.tile_q = tiles_.tile_q;
    params.tile_k = tiles_.tile_k;
    params.dq_columns = tiles_.dq_columns();
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.scale = problem().softmax_scale() * kept_scale(problem().dropout);
    params.bfloat16 = problem().dtype == DType::bfloat16 ? 1 : 0;
    convert_kernel_.launch({convert_blocks(), kConvertThreads, 0}, params, stream);
  }

  const CudaDeviceInfo& properties_;
  const BackwardConfig& tiles_;
  KernelImage image_;
  const Kernel& kernel_;
  const Kernel& convert_kernel_;
  bool deterministic_;
  bool is_program_;

  sm90::BackwardOrder order_{};
  SequenceTable query_table_;
  std::unique_ptr<const ListedSchedule> schedule_;  // of listed masks, and what play_listed_backward() made of it
  DeviceMemory tasks_memory_, terms_memory_, sums_memory_;
  std::int64_t blocks_ = 0;
  WorkspaceLayout layout_;
  BackwardStatistics statistics_;  // its numbers: a counter of tiles, then the turns
  WorkspaceSlot<float> dq_sum_;
  WorkspaceSlot<SequenceEntry> sequences_;
};

}  // namespace

std::vector<KernelImage> backward_images(const Problem& problem) {
  const BackwardConfig* const config = choose_config(problem);
  return config == nullptr ? wide_backward_images(problem) : std::vector{image_of(*config, problem)};
}

std::optional<std::string> backward_missing(const Problem& problem, const PlanOptions& /*options*/) {
  if (!backward_images(problem).empty()) {
    return std::nullopt;
  }
  const std::uint32_t features = backward_features(problem);
  return no_kernel(problem, features, "backward kernel", in_tables(problem, features, kProgramRows));
}

std::unique_ptr<const Executable> make_backward(const Problem& problem, const PlanOptions& options) {
  if (choose_config(problem) == nullptr) {
    return make_wide_backward(problem, options);
  }
  return std::make_unique<BackwardExecutable>(problem, options);
}

}  // namespace tessera::internal
