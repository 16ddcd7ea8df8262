// What both launchers of the backward pass do before their kernels: the statistics of every row, and the common checks.
#pragma once

#include "cuda/common/backward_rows.h"
#include "cuda/sm90/executable.h"
#include "plan/workspace.h"

namespace tessera::internal {

// Throws Error(invalid_argument) for memory that the kernels cannot take.
void require_backward_tensors(const BackwardTensors& tensors, int device);
// Gradients of problems without queries or keys.
void zero_gradients(const BackwardTensors& tensors, int device, void* stream);

// The scale of scores in exponents, by which LSE is divided: not so small that the quotient is infinite.
float exponent_scale(const Problem& problem);

// LSE in powers of two and delta = rowsum(dO o O) - dLSE of every row of queries, each sequence padded to whole tiles; and
// numbers that kernels count with, which begin at 0.
class BackwardStatistics {
 public:
  struct Numbers {
    std::int64_t counters;
    bool turns;          // one more for each tile of queries
    bool parts = false;  // LSE and delta in parts, see StatisticParts
    bool whole = true;   // as they are; where sinks need them in any case
  };

  BackwardStatistics(int device, const Problem& problem, std::int64_t tile_q, const Numbers& numbers,
                     WorkspaceLayout& layout);

  std::int64_t rows() const { return rows_; }
  std::int64_t line_rows() const { return line_rows_; }  // of one head
  const float* lse_log2(std::span<std::byte> workspace) const { return lse_log2_.in(workspace); }
  const float* delta(std::span<std::byte> workspace) const { return delta_.in(workspace); }
  StatisticParts* parts(std::span<std::byte> workspace) const { return has_parts_ ? parts_.in(workspace) : nullptr; }
  std::int32_t* numbers(std::span<std::byte> workspace) const { return numbers_.in(workspace); }

  KernelFacts facts() const;
  // The gradient of the sinks, where it is wanted, of the rows of statistics, of which there may be none.
  void sum_sinks(const BackwardTensors& tensors, const Batch& batch, std::span<std::byte> workspace,
                 void* stream) const;
  // `dq_sum` of `dq_columns` a row is zeroed, unless it is null.
  void run(const BackwardTensors& tensors, const Batch& batch, float* dq_sum, int dq_columns,
           std::span<std::byte> workspace, void* stream) const;

 private:
  static constexpr int kThreads = 256;

  std::int64_t blocks() const;

  int device_;
  int lanes_;  // of a row
  bool bfloat16_;
  bool has_parts_, has_whole_;
  float lse_factor_;
  std::int32_t dim_v_;
  std::int64_t numbers_count_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t line_rows_ = 0;
  const Kernel& kernel_;
  WorkspaceSlot<float> lse_log2_, delta_;
  WorkspaceSlot<StatisticParts> parts_;
  WorkspaceSlot<std::int32_t> numbers_;
};

}  // namespace tessera::internal
