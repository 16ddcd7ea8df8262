// Which kernels a backward pass of the sm80 family takes.
#pragma once

#include "cuda/kernel.h"
#include "cuda/sm80/bwd/config.h"
#include "tessera/plan.h"

namespace tessera::internal {

enum class Sm80BackwardInputs : std::uint8_t { half, float32, tf32 };
enum class Sm80BackwardProgram : std::uint8_t { plain, any };

struct Sm80BackwardRow {
  Sm80BackwardInputs inputs;
  sm80::BackwardConfig config;
  sm80::BackwardRole role;
  Sm80BackwardProgram program;
};

// Of the rows of the table with this role that take the problem, fit the device and are built, the one that multiplies the fewest
// columns, where the options allow it and there is one with rounded products; null when there is none.
const Sm80BackwardRow* choose_sm80_backward(const Problem& problem, const PlanOptions& options,
                                            sm80::BackwardRole role);
KernelImage image_of(const Sm80BackwardRow& row, const Problem& problem);

}  // namespace tessera::internal
