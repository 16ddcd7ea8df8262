#include <algorithm>
#include <array>
#include <bit>

#include "core/fail.h"
#include "cuda/decode/config.h"
#include "cuda/decode/executable.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/executable.h"
#include "cuda/score_params.h"
#include "cuda/tensors.h"
#include "plan/workspace.h"

namespace tessera::internal {

namespace {

using decode::DecodeConfig;
using decode::DecodeParams;
using decode::RowStatistics;

constexpr std::array kConfigs{
#define TESSERA_DECODE(inputs, head_dim, row_warps, slices, stages, set) \
  DecodeConfig{head_dim, row_warps, slices, stages},
#include "cuda/decode/table.def"
#undef TESSERA_DECODE
};

std::string image_name(const DecodeConfig& config, const Problem& problem) {
  std::string name = "decode";
  for (const int part : {config.head_dim, config.row_warps, config.slices, config.stages}) {
    name += "_" + std::to_string(part);
  }
  return name.append("_").append(element_name(problem.dtype));
}

std::int64_t rows_of(const Problem& problem) { return problem.seq_q * problem.group_size(); }

// What the search for a block's share takes, with room to spare.
constexpr std::int64_t kStaticBytes = 1024;

// The smallest head dim and the fewest rows that hold the problem's; where none has so many rows, the most, several times.
const DecodeConfig* choose_config(const Problem& problem, const CudaDeviceInfo& device) {
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const DecodeConfig* best = nullptr;
  for (const DecodeConfig& config : kConfigs) {
    const bool fits = config.head_dim >= dim && config.shared_bytes() + kStaticBytes <= device.shared_bytes;
    const bool closer = best == nullptr || (config.head_dim == best->head_dim && best->rows() < rows_of(problem) &&
                                            config.rows() > best->rows());
    if (fits && closer && Kernel::exists(image_name(config, problem))) {
      best = &config;
    }
  }
  return best;
}

class DecodeExecutable final : public DeviceExecutable {
 public:
  DecodeExecutable(const Problem& problem, const PlanOptions& options)
      : DeviceExecutable(problem, options),
        blocks_(cuda_device(options.device.index).multiprocessors),
        config_(*choose_config(problem, cuda_device(options.device.index))),
        image_(image_name(config_, problem)),
        kernel_(Kernel::load(device(), image_)),
        merge_(Kernel::load(device(), image_, image_ + "_merge")),
        row_tiles_(ceil_div(rows_of(problem), config_.rows())) {
    const std::int64_t partial_rows = 2 * blocks_ * config_.rows();
    partial_out_ = layout_.add<float>(partial_rows * problem.dim_v);
    partial_rows_ = layout_.add<RowStatistics>(partial_rows);
    lengths_.assign(problem.key_lengths.begin(), problem.key_lengths.end());
    lengths_slot_ = layout_.add<std::int32_t>(static_cast<std::int64_t>(lengths_.size()));
  }

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = std::max<std::int64_t>(1, std::min(problem().seq_q, config_.rows() / problem().group_size()));
    facts.tile_k = decode::kStepKeys;
    facts.workspace_bytes = layout_.bytes();
    KernelFacts row;
    row.name = image_;
    row.tile_q = facts.tile_q;
    row.tile_k = facts.tile_k;
    row.stages = config_.stages;
    row.threads = config_.threads();
    row.registers = kernel_.registers();
    row.spill_bytes = kernel_.spill_bytes();
    row.shared_bytes = config_.shared_bytes();
    row.blocks = blocks_;
    facts.kernels.push_back(row);
    KernelFacts merge;
    merge.name = image_ + "_merge";
    merge.threads = decode::kMergeThreads;
    merge.registers = merge_.registers();
    merge.spill_bytes = merge_.spill_bytes();
    merge.blocks = blocks_ - 1;
    facts.kernels.push_back(merge);
    return facts;
  }

  void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override {
    if (tensors.out.elements() == 0) {
      return;
    }
    const ContextScope context(device());
    require_usable(tensors);
    DecodeParams params = params_of(tensors);
    params.partial_out = partial_out_.in(workspace);
    params.partial_rows = partial_rows_.in(workspace);
    if (!lengths_.empty()) {
      write_table(device(), lengths_slot_.in(workspace), lengths_.data(), static_cast<std::int64_t>(lengths_.size()),
                  stream);
      params.lengths = lengths_slot_.in(workspace);
      params.lengths_stride = 1;
    }
    kernel_.launch({blocks_, config_.threads(), config_.shared_bytes()}, params, stream);
    if (blocks_ > 1) {
      merge_.launch({.blocks = blocks_ - 1, .threads = decode::kMergeThreads, .early = fit_beside()}, params, stream);
    }
  }

 private:
  // Whether a block of each kernel fits into the registers of a multiprocessor. Else early ones would crowd onto those that
  // are done first: of 64 rows and one key head, 45 us in place of 35.
  bool fit_beside() const {
    constexpr int kRegisters = 65536;
    const auto taken = [](int registers, int threads) { return static_cast<int>(round_up(registers, 8)) * threads; };
    return taken(kernel_.registers(), config_.threads()) + taken(merge_.registers(), decode::kMergeThreads) <=
           kRegisters;
  }
  void require_usable(const ForwardTensors& tensors) const {
    require_copyable("q", tensors.q, device());
    require_copyable("k", tensors.k, device());
    require_copyable("v", tensors.v, device());
    require_copyable("out", tensors.out, device());
    require_on_device("lse", tensors.lse, device());
    require_on_device("key_lengths", tensors.key_lengths, device());
    require_on_device("page_table", tensors.page_table, device());
  }

  DecodeParams params_of(const ForwardTensors& tensors) const {
    const Problem& problem = this->problem();
    const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    DecodeParams params{};
    params.q = tensors.q.data;
    // Without keys nothing is read from there.
    params.k = tensors.k.elements() == 0 ? tensors.q.data : tensors.k.data;
    params.v = tensors.v.elements() == 0 ? tensors.q.data : tensors.v.data;
    params.out = tensors.out.data;
    params.lse = static_cast<float*>(tensors.lse.data);
    params.q_strides = strides_of(tensors.q);
    params.k_strides = strides_of(tensors.k);
    params.v_strides = strides_of(tensors.v);
    params.out_strides = strides_of(tensors.out);
    params.lse_strides = lse_strides_of(tensors.lse);
    params.batch = narrow(problem.batch);
    params.queries = narrow(problem.seq_q);
    params.keys = narrow(problem.paged() && tensors.k.shape[0] == 0 ? 0 : problem.seq_k);
    params.heads_kv = narrow(problem.heads_kv);
    params.group_size = narrow(problem.group_size());
    params.row_tiles = narrow(row_tiles_);
    params.dim_qk = narrow(problem.dim_qk);
    params.dim_v = narrow(problem.dim_v);
    params.out_is_float32 = problem.out_dtype() == DType::float32 ? 1 : 0;
    params.blocks = narrow(blocks_);
    params.band = band_of(problem.mask);
    params.score = score_params_of(tensors.score);
    if (problem.lengths_in_tensors) {
      params.lengths = static_cast<const std::int32_t*>(tensors.key_lengths.data);
      params.lengths_stride = tensors.key_lengths.strides[0];
    }
    if (problem.paged()) {
      params.pages = {static_cast<const std::int32_t*>(tensors.page_table.data), tensors.page_table.strides[0],
                      tensors.page_table.strides[1],
                      narrow(std::countr_zero(static_cast<std::uint64_t>(problem.page_size))),
                      narrow(tensors.k.shape[0])};
    }
    return params;
  }

  std::int64_t blocks_;
  const DecodeConfig& config_;
  std::string image_;
  const Kernel& kernel_;
  const Kernel& merge_;
  std::int64_t row_tiles_;
  std::vector<std::int32_t> lengths_;
  WorkspaceLayout layout_;
  WorkspaceSlot<float> partial_out_;
  WorkspaceSlot<RowStatistics> partial_rows_;
  WorkspaceSlot<std::int32_t> lengths_slot_;
};

}  // namespace

std::optional<std::string> decode_missing(const Problem& problem, const PlanOptions& options) {
  if (choose_config(problem, cuda_device(options.device.index)) != nullptr) {
    return std::nullopt;
  }
  return "this build has no kernel for head dims " + std::to_string(problem.dim_qk) + " and " +
         std::to_string(problem.dim_v) + " in " + std::string(dtype_name(problem.dtype)) +
         " on this device (configure with -DTESSERA_CUDA_KERNELS=all)";
}

std::unique_ptr<const Executable> make_decode(const Problem& problem, const PlanOptions& options) {
  return std::make_unique<DecodeExecutable>(problem, options);
}

}  // namespace tessera::internal
