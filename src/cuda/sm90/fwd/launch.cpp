#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/listed_order.h"
#include "cuda/memory.h"
#include "cuda/schedule.h"
#include "cuda/score_params.h"
#include "cuda/sm90/executable.h"
#include "cuda/sm90/fwd/config.h"
#include "cuda/sm90/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using sm90::ForwardConfig;
using sm90::ForwardParams;

constexpr std::array kConfigs{
#define TESSERA_SM90_FORWARD(head_dim, warpgroups, tile_k, stages, set) \
  ForwardConfig{head_dim, warpgroups, tile_k, stages},
#include "cuda/sm90/fwd/table.def"
};

constexpr std::array kListedConfigs{
#define TESSERA_SM90_FORWARD_LISTED(head_dim, warpgroups, tile_k, stages, set) \
  ForwardConfig{head_dim, warpgroups, tile_k, stages},
#include "cuda/sm90/fwd/table.def"
};

constexpr std::array kProgramRows{
#define TESSERA_SM90_FORWARD_PROGRAMS(head_dim, warpgroups, tile_k, stages, program, set) \
  ProgramRow{head_dim, TableProgram::program},
#include "cuda/sm90/fwd/table.def"
};

// The modifiers of a kernel, and kBounded. Weights in float16 need a maximum.
std::uint32_t program_of(const Problem& problem) {
  const std::uint32_t features = score_features(problem);
  const bool capped_alone =
      (features & kTransforms) == static_cast<std::uint32_t>(ScoreFeature::softcap) && problem.dtype == DType::bfloat16;
  return capped_alone && problem.softcap <= kMostBoundedSoftcap ? features | kBounded : features;
}

KernelImage image_of(const ForwardConfig& config, const Problem& problem) {
  return sm90_image(kForwardFamily, {config.head_dim, config.warpgroups, config.tile_k, config.stages}, problem,
                    program_of(problem));
}

// The polynomial y + a y^3 + b y^5 of least relative error, 2^-13.6, up to an argument of 0.6. Its error vanishes at 0, so that
// the LSE of small scores has no bias.
void set_softcap_series(ForwardParams& params) {
  constexpr std::array kCoefficients{1.0F, -0.33085981F, 0.110052F};
  constexpr float kLimit = 0.6F;
  float power = params.scale_log2 * params.score_scale;
  for (std::size_t i = 0; i < kCoefficients.size(); ++i) {
    params.softcap_series[i] = kCoefficients[i] * power;
    power *= params.score_scale * params.score_scale;
  }
  params.series_limit = kLimit / params.score_scale;
}

// Keys that a query sees from which a configuration is faster than the one before it: more queries a tile, and more keys,
// share what is loaded among more products but start and end more slowly. Measured in NOTES.md.
constexpr std::int64_t fastest_from(const ForwardConfig& config) {
  return config.warpgroups > 2 ? 1536 : config.tile_k > 64 ? 256 : 0;
}

// A thread's 16 keys of a Philox block lie in one tile of keys.
constexpr bool takes_dropout(const ForwardConfig& config) { return config.tile_k % 64 == 0; }

// Twins have no registers to spare for a score program; under a listed mask there is nothing else.
bool takes_programs(const ForwardConfig& config, const Problem& problem) {
  return config.twins() == 1 || needs_lists(problem.mask) || score_features(problem) == 0;
}

// Of the smallest head dim that holds the problem's, the configuration that is fastest, those of the build before those that
// would be compiled; null when there is none.
const ForwardConfig* choose_config(const Problem& problem) {
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const std::int64_t keys = mask_kind(problem.mask) == MaskKind::causal ? problem.seq_k / 2 : problem.seq_k;
  const ForwardConfig* best = nullptr;
  bool best_is_built = false;
  const auto configs = needs_lists(problem.mask) ? std::span<const ForwardConfig>(kListedConfigs) : kConfigs;
  for (const ForwardConfig& config : configs) {
    const bool fits = config.head_dim >= dim && (best == nullptr || config.head_dim == best->head_dim) &&
                      (problem.dropout.threshold() == 0 || takes_dropout(config)) && takes_programs(config, problem);
    const KernelImage image = image_of(config, problem);
    if (!fits || Kernel::missing(image)) {
      continue;
    }
    const bool built = Kernel::exists(image.name);
    const bool fast = best == nullptr || (built == best_is_built && keys >= fastest_from(config));
    if (fast || (built && !best_is_built)) {
      best = &config;
      best_is_built = built;
    }
  }
  return best;
}

// The same, but two warpgroups where a function needs more registers than three leave it.
const ForwardConfig& choose_fitting_config(const Problem& problem, int device) {
  const ForwardConfig& best = *choose_config(problem);
  if (!problem.score_function || best.warpgroups == 2 ||
      Kernel::load(device, image_of(best, problem)).spill_bytes() == 0) {
    return best;
  }
  const auto* const found = std::find_if(kConfigs.begin(), kConfigs.end(), [&](const ForwardConfig& config) {
    return config.head_dim == best.head_dim && config.warpgroups == 2;
  });
  return found == kConfigs.end() ? best : *found;
}

class ForwardExecutable final : public DeviceExecutable {
 public:
  ForwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        config_(choose_fitting_config(problem, options.device.index)),
        image_(image_of(config_, problem)),
        kernel_(Kernel::load(device(), image_)) {
    plan_tiles();
    if (needs_lists(problem.mask) && order_.tiles > 0) {
      plan_lists();
    }
    if (dynamic_) {
      counter_ = layout_.add<std::int32_t>(1);
    }
    if (!uniform_lengths(problem)) {
      sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(table_.entries.size()));
    }
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = config_.tile_q();
    facts.tile_k = config_.tile_k;
    facts.workspace_bytes = layout_.bytes();
    KernelFacts row;
    row.name = image_.name;
    row.tile_q = config_.tile_q();
    row.tile_k = config_.tile_k;
    row.stages = config_.stages;
    row.threads = config_.threads();
    row.registers = kernel_.registers();
    row.spill_bytes = kernel_.spill_bytes();
    row.compiled = kernel_.compiled();
    row.shared_bytes = config_.twins() * config_.shared_bytes();
    row.blocks = blocks();
    row.waves = static_cast<double>(tiles_) / (properties_.multiprocessors * config_.twins());
    facts.kernels.push_back(row);
    return facts;
  }

  void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    require_copyable("q", tensors.q, device());
    require_copyable("k", tensors.k, device());
    require_copyable("v", tensors.v, device());
    require_copyable("out", tensors.out, device());
    require_on_device("lse", tensors.lse, device());
    if (tensors.k.elements() == 0 || order_.tiles == 0) {
      run_without_keys(tensors, stream);
      return;
    }
    ForwardParams params{};
    params.q = tensor_map(tensors.q, 64);
    params.k = tensor_map(tensors.k, config_.tile_k);
    params.v = tensor_map(tensors.v, config_.tile_k);
    params.out_map = tensor_map(tensors.out, 64);
    params.out = tensors.out.data;
    params.lse = static_cast<float*>(tensors.lse.data);
    params.out_strides = strides_of(tensors.out);
    params.lse_strides = lse_strides_of(tensors.lse);
    params.batch = batch_of(problem(), sequences_.in(workspace));
    params.band = band_of(problem().mask);
    params.order = order_;
    if (schedule_) {
      params.listed = schedule_->view();
      params.order.dealt = static_cast<const std::int32_t*>(order_memory_.data());
    }
    const float scale = problem().softmax_scale();
    const float softcap = problem().softcap;
    params.scale_log2 = static_cast<float>((softcap != 0 ? softcap : scale) * std::numbers::log2e);
    params.score_scale = softcap != 0 ? scale / softcap : 1.0F;
    set_softcap_series(params);
    params.score = score_params_of(tensors.score);
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    if (params.batch.sequences != nullptr) {
      write_table(device(), sequences_.in(workspace), table_, stream);
    }
    if (dynamic_) {
      params.order.counter = counter_.in(workspace);
      check(driver().memory_set_async(reinterpret_cast<CUdeviceptr>(params.order.counter), 0, sizeof(std::int32_t),
                                      static_cast<CUstream>(stream)),
            "cuMemsetD8Async");
    }
    kernel_.launch({.blocks = blocks(),
                    .threads = config_.threads(),
                    .shared_bytes = config_.twins() * config_.shared_bytes(),
                    .early = true},
                   params, stream);
  }

 private:
  // Tiles of causal and of ragged problems differ in length: a counter hands them out, those of causal ones longest first
  // inside sections of heads whose K and V stay in the L2 cache.
  void plan_tiles() {
    constexpr std::int64_t kSectionBytes = std::int64_t{8} << 20;
    const Problem& problem = this->problem();
    std::int64_t lines = problem.heads_q;
    if (uniform_lengths(problem)) {
      order_.tiles_of_head = static_cast<std::int32_t>(ceil_div(problem.seq_q, config_.tile_q()));
      lines = checked_mul(problem.batch, problem.heads_q, "batch * heads_q");
    } else {
      table_ = sequence_table(problem, true, config_.tile_q(), 1);
      order_.tiles_of_head = static_cast<std::int32_t>(table_.tiles);
    }
    const std::int64_t tiles = checked_mul(lines, order_.tiles_of_head, "tiles");
    if (tiles > std::int64_t{1} << 30) {
      fail_argument("batch * heads_q * seq_q", std::to_string(tiles) + " tiles", "up to 2^30 tiles");
    }
    tiles_ = tiles;
    order_.tiles = static_cast<std::int32_t>(tiles);
    dynamic_ = (mask_kind(problem.mask) == MaskKind::causal || !uniform_lengths(problem)) &&
               tiles > properties_.multiprocessors;
    if (mask_kind(problem.mask) == MaskKind::causal) {
      const std::int64_t head_bytes = std::max<std::int64_t>(1, problem.seq_k * (problem.dim_qk + problem.dim_v) * 2);
      order_.section_heads = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(kSectionBytes / head_bytes, 1, std::max<std::int64_t>(lines, 1)));
    }
  }

  // Listed tiles are dealt by the plan, in sections of heads whose K and V stay in the L2 cache.
  void plan_lists() {
    constexpr std::int64_t kSectionBytes = std::int64_t{16} << 20;
    constexpr double kFixedKeys = 192;  // a tile's queries and output take as long as so many keys
    const Problem& problem = this->problem();
    const ScheduleLists lists = list_schedules(problem, config_.tile_q(), config_.tile_k);
    schedule_ = std::make_unique<ListedSchedule>(device(), lists);
    const ListedSizes sizes{config_.tile_q(), order_.tiles_of_head, (problem.dim_qk + problem.dim_v) * 2,
                            kSectionBytes};
    const std::vector<std::int32_t> table =
        deal_listed_tiles(order_listed_tiles(problem, lists, ListedSide::queries, table_, sizes),
                          blocks() * config_.twins(), kFixedKeys / config_.tile_k);
    order_memory_ = DeviceMemory(device(), table.size() * sizeof(std::int32_t));
    order_memory_.copy_from(table.data(), order_memory_.bytes());
    order_.tiles = static_cast<std::int32_t>(table.size());
    dynamic_ = false;
  }

  std::int64_t blocks() const { return std::min<std::int64_t>(tiles_, properties_.multiprocessors); }

  void run_without_keys(const ForwardTensors& tensors, void* stream) const {
    if (tensors.out.elements() > 0) {
      fill_tokens(device(), tensors.out, stream);
    }
    if (!tensors.lse.absent() && tensors.lse.elements() > 0) {
      fill_lse(device(), tensors.lse, -INFINITY, stream);
    }
  }

  const CudaDeviceInfo& properties_;
  const ForwardConfig& config_;
  KernelImage image_;
  const Kernel& kernel_;
  SequenceTable table_;
  sm90::TileOrder order_{};
  std::int64_t tiles_ = 0;
  std::unique_ptr<const ListedSchedule> schedule_;  // of listed masks, and the order of their tiles
  DeviceMemory order_memory_;
  bool dynamic_ = false;
  WorkspaceLayout layout_;
  WorkspaceSlot<std::int32_t> counter_;
  WorkspaceSlot<SequenceEntry> sequences_;
};

}  // namespace

std::vector<KernelImage> forward_images(const Problem& problem) {
  const ForwardConfig* const config = choose_config(problem);
  return config == nullptr ? std::vector<KernelImage>{} : std::vector{image_of(*config, problem)};
}

std::optional<std::string> forward_missing(const Problem& problem, const PlanOptions& /*options*/) {
  if (!forward_images(problem).empty()) {
    return std::nullopt;
  }
  return no_kernel(problem, score_features(problem), "kernel", in_tables(problem, program_of(problem), kProgramRows));
}

std::unique_ptr<const Executable> make_forward(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<ForwardExecutable>(problem, options);
}

}  // namespace tessera::internal
