// One problem on the device, ready to run again and again.
#pragma once

#include "cuda/memory.h"
#include "gpu/gpu_test.h"

namespace tessera::test {

class GpuRuns {
 public:
  explicit GpuRuns(const Problem& problem, const cli::TensorOptions& options = {},
                   const PlanOptions& plan = gpu_options())
      : host(problem, options),
        forward(Plan::make(problem, Pass::forward, plan)),
        backward(Plan::make(problem, Pass::backward, plan)),
        device(host, kGpu.index),
        stream(kGpu.index),
        forward_workspace(forward, kGpu),
        backward_workspace(backward, kGpu) {}

  ForwardTensors forward_tensors() const { return device.moved(host.forward()); }
  BackwardTensors backward_tensors() const { return device.moved(host.backward()); }

  // Both passes on the object's own stream; nothing is waited for.
  void enqueue() {
    forward.run(forward_tensors(), forward_workspace.bytes(), stream.handle());
    backward.run(backward_tensors(), backward_workspace.bytes(), stream.handle());
  }
  // Waits, and brings back the outputs of both passes.
  Outputs fetch() {
    download();
    Outputs all = outputs_of(host, Pass::forward);
    for (NamedValues& output : outputs_of(host, Pass::backward)) all.push_back(std::move(output));
    return all;
  }
  Outputs run() {
    enqueue();
    return fetch();
  }
  // The same, as the bytes in memory: faster to compare.
  std::vector<std::byte> run_to_bytes() {
    enqueue();
    download();
    std::vector<std::byte> all;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      host.for_each_output(pass, [&](const std::string&, const cli::HostTensor& tensor) {
        all.insert(all.end(), tensor.memory().begin(), tensor.memory().end());
      });
    }
    return all;
  }
  // Poison on the device in place of the outputs, so that the next run has to write them all.
  void poison() {
    host.poison_outputs();
    device.upload();
  }

  cli::ProblemTensors host;
  Plan forward, backward;
  cli::DeviceTensors device;
  internal::DeviceStream stream;
  cli::PlanWorkspace forward_workspace, backward_workspace;

 private:
  void download() {
    stream.synchronize();
    device.download(host, Pass::forward);
    device.download(host, Pass::backward);
  }
};

}  // namespace tessera::test
