#include <algorithm>
#include <array>
#include <cmath>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/schedule.h"
#include "cuda/score_params.h"
#include "cuda/sm80/executable.h"
#include "cuda/sm80/fwd/config.h"
#include "cuda/sm80/image.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using sm80::ForwardConfig;
using sm80::ForwardParams;

enum class Sm80Inputs : std::uint8_t { half, float32, tf32 };
enum class Sm80Program : std::uint8_t { plain, any };

struct Sm80ForwardRow {
  Sm80Inputs inputs;
  ForwardConfig config;
  Sm80Program program;
};

constexpr std::array kSm80ForwardRows{
#define TESSERA_SM80_FORWARD(inputs, dim_qk, dim_v, warps, row_blocks, tile_k, stages, program, set)                 \
  Sm80ForwardRow{Sm80Inputs::inputs,                                                                                 \
                 {Sm80Inputs::inputs == Sm80Inputs::half ? 2 : 4, dim_qk, dim_v, warps, row_blocks, tile_k, stages}, \
                 Sm80Program::program},
#include "cuda/sm80/fwd/table.def"
#undef TESSERA_SM80_FORWARD
};

KernelImage image_of(const Sm80ForwardRow& row, const Problem& problem) {
  const ForwardConfig& config = row.config;
  return sm80_image({"sm80_forward", "cuda/sm80/fwd/kernel.cuh"},
                    {config.dim_qk, config.dim_v, config.warps, config.row_blocks, config.tile_k, config.stages}, "",
                    row.program == Sm80Program::plain ? "plain" : "any",
                    row.inputs == Sm80Inputs::tf32 ? "tf32" : element_name(problem.dtype), problem);
}

std::int64_t parts_of(const Problem& problem, const ForwardConfig& config) {
  return std::max<std::int64_t>(1, ceil_div(problem.dim_v, config.dim_v));
}

// The row that multiplies the fewest columns, of those for these inputs that are built and fit; null when there is none.
const Sm80ForwardRow* choose_row(const Problem& problem, const PlanOptions& options, Sm80Inputs inputs) {
  const bool plain = has_plain_scores(problem);
  const auto columns = [&](const Sm80ForwardRow& row) {
    return parts_of(problem, row.config) * (row.config.dim_qk + row.config.dim_v);
  };
  const Sm80ForwardRow* best = nullptr;
  for (const Sm80ForwardRow& row : kSm80ForwardRows) {
    const bool takes = row.inputs == inputs && row.config.dim_qk >= problem.dim_qk &&
                       (plain || row.program == Sm80Program::any) &&
                       row.config.shared_bytes() <= cuda_device(options.device.index).shared_bytes;
    if (takes && (best == nullptr || columns(row) < columns(*best)) && !Kernel::missing(image_of(row, problem))) {
      best = &row;
    }
  }
  return best;
}

const Sm80ForwardRow* choose_row(const Problem& problem, const PlanOptions& options) {
  if (problem.dtype != DType::float32) {
    return choose_row(problem, options, Sm80Inputs::half);
  }
  const bool rounded = options.float32_products == Float32Products::tf32;
  const Sm80ForwardRow* const row = rounded ? choose_row(problem, options, Sm80Inputs::tf32) : nullptr;
  return row != nullptr ? row : choose_row(problem, options, Sm80Inputs::float32);
}

class Sm80ForwardExecutable final : public DeviceExecutable {
 public:
  Sm80ForwardExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        properties_(cuda_device(options.device.index)),
        row_(*choose_row(problem, options)),
        image_(image_of(row_, problem)),
        kernel_(Kernel::load(device(), image_)) {
    plan_tiles();
    if (!uniform_lengths(problem)) {
      sequences_ = layout_.add<SequenceEntry>(static_cast<std::int64_t>(table_.entries.size()));
    }
    if (needs_lists(problem.mask)) {
      listed_.emplace(device(), problem, config().tile_q(), config().tile_k);
    }
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = config().tile_q();
    facts.tile_k = config().tile_k;
    facts.workspace_bytes = layout_.bytes();
    KernelFacts row;
    row.name = image_.name;
    row.tile_q = config().tile_q();
    row.tile_k = config().tile_k;
    row.stages = config().stages;
    row.threads = config().threads();
    row.registers = kernel_.registers();
    row.spill_bytes = kernel_.spill_bytes();
    row.compiled = kernel_.compiled();
    row.shared_bytes = config().shared_bytes();
    row.blocks = blocks();
    row.waves = static_cast<double>(blocks()) /
                (static_cast<double>(properties_.multiprocessors) * config().blocks_per_multiprocessor());
    facts.kernels.push_back(row);
    return facts;
  }

  void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    const ContextScope context(device());
    require_on_device("q", tensors.q, device());
    require_on_device("k", tensors.k, device());
    require_on_device("v", tensors.v, device());
    require_on_device("out", tensors.out, device());
    require_on_device("lse", tensors.lse, device());
    if (order_.tiles == 0) {
      return;
    }
    ForwardParams params = params_of(tensors);
    params.batch = batch_of(problem(), sequences_.in(workspace));
    if (params.batch.sequences != nullptr) {
      write_table(device(), sequences_.in(workspace), table_, stream);
    }
    kernel_.launch({blocks(), config().threads(), config().shared_bytes()}, params, stream);
  }

 private:
  const ForwardConfig& config() const { return row_.config; }
  std::int64_t blocks() const { return order_.tiles * parts_of(problem(), config()); }

  ForwardParams params_of(const ForwardTensors& tensors) const {
    ForwardParams params{};
    params.q = row_source(tensors.q);
    params.k = row_source(tensors.k);
    params.v = row_source(tensors.v);
    params.out = tensors.out.data;
    params.lse = static_cast<float*>(tensors.lse.data);
    params.out_strides = strides_of(tensors.out);
    params.lse_strides = lse_strides_of(tensors.lse);
    params.out_is_float32 = tensors.out.dtype == DType::float32 ? 1 : 0;
    params.out_is_aligned = row_source(tensors.out).piece_bytes == 16 && problem().dim_v % 8 == 0 ? 1 : 0;
    params.dim_v = static_cast<std::int32_t>(problem().dim_v);
    params.band = band_of(problem().mask);
    params.order = order_;
    params.score = score_params_of(tensors.score);
    if (listed_) {
      params.is_listed = 1;
      params.listed = listed_->view();
    }
    return params;
  }

  // Tiles of a band end at different lengths: the longest begin first, inside sections of heads whose K and V stay in the L2
  // cache. With a quarter of it, too few blocks are left for how unevenly a section ends.
  void plan_tiles() {
    constexpr std::int64_t kSectionBytes = std::int64_t{32} << 20;
    const Problem& problem = this->problem();
    std::int64_t lines = problem.heads_q;
    if (uniform_lengths(problem)) {
      order_.tiles_of_head = static_cast<std::int32_t>(ceil_div(problem.seq_q, config().tile_q()));
      lines = checked_mul(problem.batch, problem.heads_q, "batch * heads_q");
    } else {
      table_ = sequence_table(problem, true, config().tile_q(), 1);
      order_.tiles_of_head = static_cast<std::int32_t>(table_.tiles);
    }
    const std::int64_t tiles = checked_mul(lines, order_.tiles_of_head, "tiles");
    if (tiles * parts_of(problem, config()) > std::int64_t{1} << 30) {
      fail_argument("batch * heads_q * seq_q", std::to_string(tiles) + " tiles", "up to 2^30 tiles");
    }
    order_.tiles = static_cast<std::int32_t>(tiles);
    if (problem.mask.has_band()) {
      const std::int64_t head_bytes =
          std::max<std::int64_t>(1, problem.seq_k * (problem.dim_qk + problem.dim_v) * dtype_bytes(problem.dtype));
      order_.section_heads = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(kSectionBytes / head_bytes, 1, std::max<std::int64_t>(lines, 1)));
    }
  }

  const CudaDeviceInfo& properties_;
  const Sm80ForwardRow& row_;
  KernelImage image_;
  const Kernel& kernel_;
  SequenceTable table_;
  std::optional<ListedSchedule> listed_;
  sm80::ForwardOrder order_{};
  WorkspaceLayout layout_;
  WorkspaceSlot<SequenceEntry> sequences_;
};

}  // namespace

std::optional<std::string> sm80_forward_missing(const Problem& problem, const PlanOptions& options) {
  if (choose_row(problem, options) != nullptr) {
    return std::nullopt;
  }
  return sm80_no_kernel(problem, "head dim " + std::to_string(problem.dim_qk) + " in " +
                                     std::string(element_name(problem.dtype)) + ": this build has no kernel for it");
}

std::unique_ptr<const Executable> make_sm80_forward(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<Sm80ForwardExecutable>(problem, options);
}

}  // namespace tessera::internal
