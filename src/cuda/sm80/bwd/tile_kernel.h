// One kernel of a backward pass of the sm80 family, with what its grid and its tiles need.
#pragma once

#include <optional>

#include "cuda/device.h"
#include "cuda/schedule.h"
#include "cuda/sm80/bwd/select.h"
#include "cuda/tensors.h"
#include "tessera/plan.h"

namespace tessera::internal {

inline constexpr std::int64_t kMostSm80BackwardItems = std::int64_t{1} << 30;

class Sm80BackwardKernel {
 public:
  // Every sequence has rows of statistics in multiples of `line`.
  Sm80BackwardKernel(const Problem& problem, const PlanOptions& options, const Sm80BackwardRow& row, std::int64_t line);

  const sm80::BackwardConfig& config() const { return row_.config; }
  sm80::BackwardRole role() const { return row_.role; }
  const SequenceTable& table() const { return table_; }
  std::int64_t items() const { return items_; }
  // Blocks that are on the device at the same time.
  std::int64_t resident_blocks(const CudaDeviceInfo& device) const;

  // What differs between the kernels of a pass.
  void set_tiles(sm80::BackwardParams& params) const;
  void launch(const sm80::BackwardParams& params, std::int64_t blocks, void* stream, bool cooperative = false) const;

  KernelFacts facts(const CudaDeviceInfo& device) const;

 private:
  int shared_bytes() const { return config().shared_bytes(role()); }
  void count_items(const Problem& problem, std::int64_t line);

  const Sm80BackwardRow& row_;
  KernelImage image_;
  const Kernel& kernel_;
  std::optional<ListedSchedule> listed_;
  SequenceTable table_;
  std::int64_t items_ = 0;
  std::int32_t tiles_of_head_ = 0;
  std::int32_t section_heads_ = 1;
};

}  // namespace tessera::internal
