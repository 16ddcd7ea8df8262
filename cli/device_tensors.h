// Copies of host tensors on a CUDA device.
#pragma once

#include <map>

#include "cli/problem_tensors.h"
#include "cuda/memory.h"
#include "tessera/plan.h"

namespace tessera::cli {

// Each copy is of a whole allocation, so that strides, gaps and poison are those of the host. The host's tensors must
// outlive this.
class DeviceTensors {
 public:
  explicit DeviceTensors(int device) : device_(device) {}
  // All tensors of both passes.
  DeviceTensors(const ProblemTensors& host, int device);

  // Copies what the host holds. An absent tensor is left out.
  void add(const HostTensor& host);
  // The same tensors on the device: each view is one of a tensor that was added, or absent.
  ForwardTensors moved(ForwardTensors tensors) const;
  BackwardTensors moved(BackwardTensors tensors) const;

  // Copies all that the hosts hold once more, outputs with their poison too.
  void upload();
  // Copies back, gaps included.
  void download(const HostTensor& host) const;
  void download(const ProblemTensors& host, Pass pass) const;

 private:
  struct Copy {
    const HostTensor* host;
    internal::DeviceMemory memory;
  };
  template <class View>
  void move(View& view) const;
  void move(ScoreTensors& score) const;

  int device_;
  std::map<const void*, Copy> copies_;  // by the address of the host's first element
};

}  // namespace tessera::cli
