// Tensors to time a problem with: random numbers of the host or, for a GPU, made there, since a host takes minutes for the
// sequences that many GPUs share.
#pragma once

#include <memory>
#include <vector>

#include "cli/problem_tensors.h"
#include "cuda/memory.h"

namespace tessera::cli {

class BenchTensors {
 public:
  BenchTensors(const Problem& problem, const Device& device, std::uint64_t seed);

  ForwardTensors forward() const;
  BackwardTensors backward() const;
  // What work on these tensors is put into; null on the CPU.
  void* stream() const { return stream_ ? stream_->handle() : nullptr; }
  const internal::DeviceStream& device_stream() const { return *stream_; }

 private:
  TensorView take(DType dtype, const std::vector<std::int64_t>& shape);

  Device device_;
  std::unique_ptr<ProblemTensors> host_;
  std::vector<internal::DeviceMemory> memory_;
  std::unique_ptr<internal::DeviceStream> stream_;
  BackwardTensors views_;
  TensorView out_, lse_;
};

}  // namespace tessera::cli
