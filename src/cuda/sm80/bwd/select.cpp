#include "cuda/sm80/bwd/select.h"

#include <algorithm>
#include <array>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/executable.h"
#include "cuda/score_params.h"
#include "cuda/sm80/image.h"

namespace tessera::internal {

namespace {

constexpr std::array kSm80BackwardRows{
#define TESSERA_SM80_BACKWARD(inputs, columns, tile_q, tile_k, warps, stages, blocks, resident, role, program, set) \
  Sm80BackwardRow{Sm80BackwardInputs::inputs,                                                                       \
                  {columns, tile_q, tile_k, warps, stages, blocks, resident,                                        \
                   Sm80BackwardInputs::inputs == Sm80BackwardInputs::half ? 2 : 4},                                 \
                  sm80::BackwardRole::role,                                                                         \
                  Sm80BackwardProgram::program},
#include "cuda/sm80/bwd/table.def"
#undef TESSERA_SM80_BACKWARD
};

std::string_view role_name(sm80::BackwardRole role) {
  switch (role) {
    case sm80::BackwardRole::keys:
      return "keys";
    case sm80::BackwardRole::joint:
      return "joint";
    case sm80::BackwardRole::queries:
      return "queries";
    default:
      return "bias";
  }
}

// Columns that are multiplied: blocks that own a part of the columns all need the whole scores.
std::int64_t multiplied_columns(const Sm80BackwardRow& row, std::int64_t dim) {
  const std::int64_t chunks = ceil_div(dim, row.config.columns);
  return row.config.columns * chunks * (2 * chunks + 2);
}

}  // namespace

KernelImage image_of(const Sm80BackwardRow& row, const Problem& problem) {
  const sm80::BackwardConfig& config = row.config;
  return sm80_image(
      {"sm80_backward", "cuda/sm80/bwd/kernel.cuh"},
      {config.columns, config.tile_q, config.tile_k, config.warps, config.stages, config.blocks, config.resident},
      role_name(row.role), row.program == Sm80BackwardProgram::plain ? "plain" : "any",
      row.inputs == Sm80BackwardInputs::tf32 ? "tf32" : element_name(problem.dtype), problem);
}

namespace {

const Sm80BackwardRow* choose_row(const Problem& problem, const PlanOptions& options, sm80::BackwardRole role,
                                  Sm80BackwardInputs inputs) {
  const bool plain = has_plain_scores(problem);
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const Sm80BackwardRow* best = nullptr;
  for (const Sm80BackwardRow& row : kSm80BackwardRows) {
    const bool takes = row.role == role && row.inputs == inputs && (plain || row.program == Sm80BackwardProgram::any) &&
                       (row.config.resident == 0 || dim <= row.config.columns) &&
                       row.config.shared_bytes(role) <= cuda_device(options.device.index).shared_bytes;
    if (takes && (best == nullptr || multiplied_columns(row, dim) < multiplied_columns(*best, dim)) &&
        !Kernel::missing(image_of(row, problem))) {
      best = &row;
    }
  }
  return best;
}

}  // namespace

const Sm80BackwardRow* choose_sm80_backward(const Problem& problem, const PlanOptions& options,
                                            sm80::BackwardRole role) {
  if (problem.dtype != DType::float32) {
    return choose_row(problem, options, role, Sm80BackwardInputs::half);
  }
  const bool rounded = options.float32_products == Float32Products::tf32;
  const Sm80BackwardRow* const row = rounded ? choose_row(problem, options, role, Sm80BackwardInputs::tf32) : nullptr;
  return row != nullptr ? row : choose_row(problem, options, role, Sm80BackwardInputs::float32);
}

}  // namespace tessera::internal
