#include "cuda/sm90/bwd_wide/launch.h"

#include <algorithm>
#include <array>
#include <numbers>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/schedule.h"
#include "cuda/sm90/bwd/statistics.h"
#include "cuda/sm90/bwd_wide/config.h"
#include "cuda/sm90/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using sm90::BackwardKeysConfig;
using sm90::BackwardParams;
using sm90::BackwardQueriesConfig;
using sm90::BackwardQueriesParams;

// In ascending order of head dims.
constexpr std::array kKeysConfigs{
#define TESSERA_SM90_BACKWARD_KEYS(head_dim, tile_q, tile_k, stages, set) \
  BackwardKeysConfig{head_dim, tile_q, tile_k, stages},
#include "cuda/sm90/bwd_wide/table.def"
};
constexpr std::array kQueriesConfigs{
#define TESSERA_SM90_BACKWARD_QUERIES(head_dim, tile_q, tile_k, key_stages, value_stages, set) \
  BackwardQueriesConfig{head_dim, tile_q, tile_k, key_stages, value_stages},
#include "cuda/sm90/bwd_wide/table.def"
};

KernelImage image_of(const BackwardKeysConfig& config, const Problem& problem) {
  return sm90_image(kBackwardKeysFamily, {config.head_dim, config.tile_q, config.tile_k, config.stages}, problem,
                    backward_features(problem));
}

KernelImage image_of(const BackwardQueriesConfig& config, const Problem& problem) {
  return sm90_image(kBackwardQueriesFamily,
                    {config.head_dim, config.tile_q, config.tile_k, config.key_stages, config.value_stages}, problem,
                    backward_features(problem));
}

// That of the smallest head dim that holds the problem's; null when there is none.
template <class Configs>
auto choose_config(const Configs& configs, const Problem& problem) -> decltype(configs.data()) {
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const auto found = std::find_if(configs.begin(), configs.end(), [&](const auto& config) {
    return config.head_dim >= dim && !Kernel::missing(image_of(config, problem));
  });
  return found == configs.end() ? nullptr : &*found;
}

struct WideBackwardKernels {
  const Kernel& keys;
  const Kernel& queries;
};

WideBackwardKernels load_kernels(int device, const Problem& problem, const BackwardKeysConfig& keys,
                                 const BackwardQueriesConfig& queries) {
  const std::array images{image_of(keys, problem), image_of(queries, problem)};
  Kernel::load_all(device, images);
  return {Kernel::load(device, images[0]), Kernel::load(device, images[1])};
}

class WideBackwardExecutable final : public DeviceExecutable {
 public:
  WideBackwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        keys_(*choose_config(kKeysConfigs, problem)),
        queries_(*choose_config(kQueriesConfigs, problem)),
        kernels_(load_kernels(device(), problem, keys_, queries_)),
        statistics_(device(), problem, keys_.tile_q, {kCounters, false}, layout_) {
    plan_tiles();
    if (!uniform_lengths(problem)) {
      key_sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(key_table_.entries.size()));
      query_sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(query_table_.entries.size()));
    }
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = queries_.tile_q;
    facts.tile_k = keys_.tile_k;
    facts.workspace_bytes = layout_.bytes();
    facts.kernels.push_back(statistics_.facts());
    const auto add = [&](const auto& config, const Kernel& kernel, int stages, std::int32_t tiles) {
      KernelFacts row;
      row.name = image_of(config, problem()).name;
      row.tile_q = config.tile_q;
      row.tile_k = config.tile_k;
      row.stages = stages;
      row.threads = config.kThreads;
      row.registers = kernel.registers();
      row.spill_bytes = kernel.spill_bytes();
      row.compiled = kernel.compiled();
      row.shared_bytes = config.shared_bytes();
      row.blocks = blocks(tiles);
      row.waves = static_cast<double>(tiles) / properties_.multiprocessors;
      facts.kernels.push_back(row);
    };
    add(keys_, kernels_.keys, keys_.stages, key_order_.tiles);
    add(queries_, kernels_.queries, queries_.key_stages, query_order_.tiles);
    return facts;
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    require_backward_tensors(tensors, device());
    if (query_order_.tiles == 0 || key_order_.tiles == 0) {
      zero_gradients(tensors, device(), stream);
      statistics_.sum_sinks(tensors, batch_of(problem(), nullptr), workspace, stream);
      return;
    }
    if (!uniform_lengths(problem())) {
      write_table(device(), key_sequences_.in(workspace), key_table_, stream);
      write_table(device(), query_sequences_.in(workspace), query_table_, stream);
    }
    statistics_.run(tensors, batch_of(problem(), key_sequences_.in(workspace)), nullptr, 0, workspace, stream);
    run_keys(tensors, workspace, stream);
    run_queries(tensors, workspace, stream);
    statistics_.sum_sinks(tensors, batch_of(problem(), key_sequences_.in(workspace)), workspace, stream);
  }

 private:
  static constexpr int kCounters = 2;  // of tiles handed out: of keys, of queries

  std::int64_t blocks(std::int32_t tiles) const { return std::min<std::int64_t>(tiles, properties_.multiprocessors); }

  // Tiles of causal and of ragged problems differ in length: counters hand them out, those of causal ones longest first inside
  // sections of heads whose tensors stay in the L2 cache.
  void plan_tiles() {
    constexpr std::int64_t kSectionBytes = std::int64_t{8} << 20;
    const Problem& problem = this->problem();
    std::int64_t key_lines = problem.heads_kv;
    std::int64_t query_lines = problem.heads_q;
    std::int64_t key_tiles = 0;
    std::int64_t query_tiles = 0;
    if (uniform_lengths(problem)) {
      key_tiles = ceil_div(problem.seq_k, keys_.tile_k);
      query_tiles = ceil_div(problem.seq_q, queries_.tile_q);
      key_lines = checked_mul(problem.batch, key_lines, "batch * heads_kv");
      query_lines = checked_mul(problem.batch, query_lines, "batch * heads_q");
    } else {
      key_table_ = sequence_table(problem, false, keys_.tile_k, keys_.tile_q);
      query_table_ = sequence_table(problem, true, queries_.tile_q, keys_.tile_q);
      key_tiles = key_table_.tiles;
      query_tiles = query_table_.tiles;
    }
    key_order_.tiles = narrow_tiles(key_lines, key_tiles);
    key_order_.tiles_of_head = static_cast<std::int32_t>(key_tiles);
    key_order_.way = sm90::Way::down;
    query_order_.tiles = narrow_tiles(query_lines, query_tiles);
    query_order_.tiles_of_head = static_cast<std::int32_t>(query_tiles);
    dynamic_ = mask_kind(problem.mask) == MaskKind::causal || !uniform_lengths(problem);
    const auto section = [&](std::int64_t bytes, std::int64_t lines) {
      return static_cast<std::int32_t>(std::clamp<std::int64_t>(kSectionBytes / std::max<std::int64_t>(bytes, 1), 1,
                                                                std::max<std::int64_t>(lines, 1)));
    };
    const std::int64_t row_bytes = (problem.dim_qk + problem.dim_v) * 2;
    const bool sections = uniform_lengths(problem) && mask_kind(problem.mask) == MaskKind::causal;
    key_order_.section_heads = sections ? section(problem.group_size() * problem.seq_q * row_bytes, key_lines) : 1;
    query_order_.section_heads =
        mask_kind(problem.mask) == MaskKind::causal ? section(problem.seq_k * row_bytes, query_lines) : 0;
  }

  static std::int32_t narrow_tiles(std::int64_t lines, std::int64_t tiles_of_head) {
    const std::int64_t tiles = checked_mul(lines, tiles_of_head, "tiles");
    if (tiles > std::int64_t{1} << 30) {
      fail_argument("batch * heads * seq", std::to_string(tiles) + " tiles", "up to 2^30 tiles");
    }
    return static_cast<std::int32_t>(tiles);
  }

  template <class Params>
  void set_scores(Params& params, const ScoreTensors& tensors) const {
    const float softcap = problem().softcap;
    params.scale = problem().softmax_scale();
    params.scale_log2 = static_cast<float>((softcap != 0 ? softcap : params.scale) * std::numbers::log2e);
    params.score_scale = softcap != 0 ? params.scale / softcap : 1.0F;
    params.score = score_params_of(tensors);
  }

  void run_keys(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
    BackwardParams params{};
    params.q = tensor_map(tensors.q, keys_.tile_q);
    params.k = tensor_map(tensors.k, keys_.tile_k);
    params.v = tensor_map(tensors.v, keys_.tile_k);
    params.dout = tensor_map(tensors.dout, keys_.tile_q);
    params.dk = tensors.dk.data;
    params.dv = tensors.dv.data;
    params.dk_strides = strides_of(tensors.dk);
    params.dv_strides = strides_of(tensors.dv);
    params.lse_log2 = statistics_.lse_log2(workspace);
    params.delta = statistics_.delta(workspace);
    params.batch = batch_of(problem(), key_sequences_.in(workspace));
    params.band = band_of(problem().mask);
    params.order = key_order_;
    params.order.counter = dynamic_ ? statistics_.numbers(workspace) : nullptr;
    params.line_rows = static_cast<std::int32_t>(statistics_.line_rows());
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    set_scores(params, tensors.score);
    kernels_.keys.launch({.blocks = blocks(key_order_.tiles),
                          .threads = BackwardKeysConfig::kThreads,
                          .shared_bytes = keys_.shared_bytes(),
                          .early = true},
                         params, stream);
  }

  void run_queries(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
    BackwardQueriesParams params{};
    params.q = tensor_map(tensors.q, 64);
    params.k = tensor_map(tensors.k, queries_.tile_k);
    params.v = tensor_map(tensors.v, queries_.tile_k);
    params.dout = tensor_map(tensors.dout, 64);
    params.dq = tensors.dq.data;
    params.dq_strides = strides_of(tensors.dq);
    params.lse_log2 = statistics_.lse_log2(workspace);
    params.delta = statistics_.delta(workspace);
    params.batch = batch_of(problem(), query_sequences_.in(workspace));
    params.band = band_of(problem().mask);
    params.order = query_order_;
    params.order.counter = dynamic_ ? statistics_.numbers(workspace) + 1 : nullptr;
    params.line_rows = static_cast<std::int32_t>(statistics_.line_rows());
    params.dim_qk = static_cast<std::int32_t>(problem().dim_qk);
    set_scores(params, tensors.score);
    kernels_.queries.launch({.blocks = blocks(query_order_.tiles),
                             .threads = BackwardQueriesConfig::kThreads,
                             .shared_bytes = queries_.shared_bytes(),
                             .early = true},
                            params, stream);
  }

  const CudaDeviceInfo& properties_;
  const BackwardKeysConfig& keys_;
  const BackwardQueriesConfig& queries_;
  const WideBackwardKernels kernels_;

  WorkspaceLayout layout_;
  BackwardStatistics statistics_;
  sm90::BackwardOrder key_order_{};
  sm90::TileOrder query_order_{};
  bool dynamic_ = false;
  SequenceTable key_table_, query_table_;
  WorkspaceSlot<SequenceEntry> key_sequences_, query_sequences_;
};

}  // namespace

std::vector<KernelImage> wide_backward_images(const Problem& problem) {
  const BackwardKeysConfig* const keys = choose_config(kKeysConfigs, problem);
  const BackwardQueriesConfig* const queries = choose_config(kQueriesConfigs, problem);
  if (needs_lists(problem.mask) || keys == nullptr || queries == nullptr) {
    return {};
  }
  return {image_of(*keys, problem), image_of(*queries, problem)};
}

std::unique_ptr<const Executable> make_wide_backward(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<WideBackwardExecutable>(problem, options);
}

}  // namespace tessera::internal
