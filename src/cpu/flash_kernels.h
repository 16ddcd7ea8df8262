// The entry points of one set of CPU kernels: the steps of a flash problem, each a number of independent items.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/flash_plan.h"

namespace tessera::internal {

// Of the FMA peak, that long sequences reach: more than 1 where products are not made by FMAs.
struct ExpectedShare {
  double forward = 0.85;
  double backward = 0.85;
};

struct CpuKernels {
  const char* isa;
  KernelShape shape;
  ExpectedShare expected_share;
  const CpuKernels* bfloat16;   // kernels with bfloat16 products, or null
  const CpuKernels* otherwise;  // for the problems for which these do not pay, or null
  bool (*pays)(const Problem&, Pass);

  // K and V (backward too) of plan.pack_items[item].
  void (*pack_forward)(const FlashPlan&, const ForwardTensors&, std::span<std::byte> workspace, std::int64_t item);
  void (*pack_backward)(const FlashPlan&, const BackwardTensors&, std::span<std::byte> workspace, std::int64_t item);
  // plan.items[item], in the scratch of `thread`.
  void (*forward)(const FlashPlan&, const ForwardTensors&, std::span<std::byte> workspace, int thread,
                  std::int64_t item);
  void (*backward)(const FlashPlan&, const BackwardTensors&, std::span<std::byte> workspace, int thread,
                   std::int64_t item);
  void (*bias_gradient)(const FlashPlan&, const BackwardTensors&, std::span<std::byte> workspace, int thread,
                        const BiasPart& part);
  // LSE in base 2 and D = rowsum(dO * O) - dLSE of plan.line_items[item]; later the sum of its partials of dQ.
  void (*row_statistics)(const FlashPlan&, const BackwardTensors&, std::span<std::byte> workspace, std::int64_t item);
  void (*reduce_dq)(const FlashPlan&, const BackwardTensors&, std::span<std::byte> workspace, std::int64_t item);
};

}  // namespace tessera::internal
