// What the executables of all GPU Impls share: the device, launches, and memory in stream order.
#pragma once

#include <string>

#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/tile/program.h"
#include "cuda/tile/work.h"
#include "plan/impl.h"

namespace tessera::internal {

class DeviceExecutable : public Executable {
 public:
  DeviceExecutable(const Problem& problem, const PlanOptions& options);

  std::byte* allocate_workspace(std::size_t bytes, void* stream) const override;
  void release_workspace(std::byte* memory, void* stream) const noexcept override;

 protected:
  const Problem& problem() const { return problem_; }
  int device() const { return device_; }
  ScoreParams score_params_of(const ScoreTensors& tensors) const;

 private:
  Problem problem_;
  int device_;
  DeviceMemory function_params_;  // of the user's function, for the life of the plan
};

// As in the names of images.
std::string_view element_name(DType dtype);

// The batch as kernels take it; `g_sequences` is null where all sequences are alike.
Batch batch_of(const Problem& problem, const SequenceEntry* g_sequences);
// Whether its sequences all have the lengths of the problem, so that no table of them is needed.
bool uniform_lengths(const Problem& problem);

}  // namespace tessera::internal
