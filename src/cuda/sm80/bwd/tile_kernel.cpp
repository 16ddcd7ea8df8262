#include "cuda/sm80/bwd/tile_kernel.h"

#include <algorithm>

#include "core/fail.h"
#include "cuda/executable.h"

namespace tessera::internal {

Sm80BackwardKernel::Sm80BackwardKernel(const Problem& problem, const PlanOptions& options, const Sm80BackwardRow& row,
                                       std::int64_t line)
    : row_(row), image_(image_of(row, problem)), kernel_(Kernel::load(options.device.index, image_)) {
  if (needs_lists(problem.mask)) {
    listed_.emplace(options.device.index, problem, row.config.tile_q, row.config.tile_k);
  }
  if (row.role != sm80::BackwardRole::bias) {
    count_items(problem, line);
  }
}

std::int64_t Sm80BackwardKernel::resident_blocks(const CudaDeviceInfo& device) const {
  // Of a block, and of what a multiprocessor has beyond the most of a block.
  constexpr std::int64_t kReservedBytes = 1024;
  const std::int64_t fit = (device.shared_bytes + kReservedBytes) / (shared_bytes() + kReservedBytes);
  return device.multiprocessors * std::clamp<std::int64_t>(fit, 1, config().blocks);
}

void Sm80BackwardKernel::set_tiles(sm80::BackwardParams& params) const {
  params.is_listed = listed_ ? 1 : 0;
  params.listed = listed_ ? listed_->view() : Listed{};
  params.items = static_cast<std::int32_t>(items_);
  params.tiles_of_head = tiles_of_head_;
  params.section_heads = section_heads_;
  params.chunks = static_cast<std::int32_t>(ceil_div(std::max(params.dim_qk, params.dim_v), config().columns));
}

void Sm80BackwardKernel::launch(const sm80::BackwardParams& params, std::int64_t blocks, void* stream,
                                bool cooperative) const {
  if (blocks > 0) {
    kernel_.launch({blocks, config().threads(), shared_bytes(), cooperative}, params, stream);
  }
}

KernelFacts Sm80BackwardKernel::facts(const CudaDeviceInfo& device) const {
  KernelFacts facts;
  facts.name = image_.name;
  facts.tile_q = config().tile_q;
  facts.tile_k = config().tile_k;
  facts.stages = config().stages;
  facts.threads = config().threads();
  facts.registers = kernel_.registers();
  facts.spill_bytes = kernel_.spill_bytes();
  facts.compiled = kernel_.compiled();
  facts.shared_bytes = shared_bytes();
  facts.blocks = items_;
  facts.waves = static_cast<double>(items_) / static_cast<double>(resident_blocks(device));
  return facts;
}

// Under a band tiles differ in length: the longest begin first, inside sections of heads whose other operands and dQ stay in
// the L2 cache.
void Sm80BackwardKernel::count_items(const Problem& problem, std::int64_t line) {
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
  if (items_ > kMostSm80BackwardItems) {
    fail_argument("batch * heads * seq", std::to_string(items_) + " tiles", "up to 2^30 tiles");
  }
  tiles_of_head_ = static_cast<std::int32_t>(tiles);
  if (problem.mask.has_band()) {
    const std::int64_t head_bytes = std::max<std::int64_t>(
        1, problem.group_size() * problem.seq_q * (problem.dim_qk + problem.dim_v) * 2 * dtype_bytes(problem.dtype));
    section_heads_ = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(kSectionBytes / head_bytes, 1, std::max<std::int64_t>(lines, 1)));
  }
}

}  // namespace tessera::internal
