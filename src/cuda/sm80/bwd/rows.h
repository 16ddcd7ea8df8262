// What comes before and after the kernels of a backward pass of the sm80 family, by rows of queries: their statistics, dQ out of the
// order of registers, the gradient of the sinks.
#pragma once

#include "cuda/common/gradient_rows.h"
#include "cuda/kernel.h"
#include "cuda/sm80/bwd/tile_kernel.h"
#include "plan/workspace.h"

namespace tessera::internal {

// Whether pairs of elements are aligned, and whether rows are made of pieces of 16 bytes.
bool has_aligned_pairs(const ConstTensorView& view);
bool has_whole_pieces(const ConstTensorView& view, std::int64_t dim);

class Sm80BackwardRows {
 public:
  // Float32 sums of dQ and, where it is summed in turns, their counters. Null: there are none.
  struct Sums {
    float* dq;
    std::int32_t* terms;
    std::int64_t term_count;
  };

  // Every sequence has rows in multiples of `line`, as in the table of `keys`, the kernel of dK and dV, where their lengths differ.
  Sm80BackwardRows(int device, const Problem& problem, std::int64_t line, const Sm80BackwardKernel& keys,
                   WorkspaceLayout& layout);

  std::int64_t count() const { return count_; }
  std::int64_t line_rows() const { return line_rows_; }
  const float* lse_log2(std::span<std::byte> workspace) const { return lse_log2_.in(workspace); }
  const float* delta(std::span<std::byte> workspace) const { return delta_.in(workspace); }

  KernelFacts facts() const;
  KernelFacts convert_facts() const;

  // Statistics; sums without turns begin at zero, and so do counters.
  void prepare(const BackwardTensors& tensors, const Batch& batch, const Sums& sums, std::span<std::byte> workspace,
               void* stream) const;
  // dQ of what a kernel of role joint has summed.
  void convert(const BackwardTensors& tensors, const Batch& batch, const Sums& sums, void* stream) const;
  void sum_sinks(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const;

 private:
  std::int64_t blocks() const;

  const Problem& problem_;
  const Kernel& rows_kernel_;
  const Kernel& sinks_kernel_;
  const Kernel* convert_kernel_;  // null where dQ has a kernel of its own
  sm80::BackwardConfig config_;   // of `keys`
  std::int64_t count_ = 0;        // of statistics
  std::int64_t line_rows_ = 0;    // of a line: a head of a sequence, or a head where sequences differ
  std::int64_t lines_of_head_ = 0;
  WorkspaceSlot<float> lse_log2_, delta_;
};

}  // namespace tessera::internal
