// One rank's part of the tensors of a whole problem, and the way back.
#pragma once

#include "cli/device_tensors.h"
#include "cli/problem_tensors.h"
#include "tessera/distributed.h"

namespace tessera::cli {

class RankTensors {
 public:
  // Copies the rank's tokens. `whole` must outlive it: bias, slopes and sinks are its own.
  RankTensors(const ProblemTensors& whole, SequenceLayout::Kind layout, int rank, int ranks);

  ForwardTensors forward() const;
  BackwardTensors backward() const;
  // The tensors of this rank, for copies of them on a device, and the way back for a pass's outputs.
  void add_to(DeviceTensors& copies) const;
  void download(const DeviceTensors& copies, Pass pass) const;

  // Puts the outputs of all ranks together into `whole`, unless that is null; dbias and dsinks are summed. Every rank of
  // the group has to call it.
  void collect(Communicator& communicator, Pass pass, const ProblemTensors* whole) const;

 private:
  struct Output {
    std::string name;
    const HostTensor* part;
    const HostTensor* whole;
    const SequenceLayout* layout;  // null for a share of a sum
    int axis;
  };
  std::vector<Output> outputs(Pass pass, const ProblemTensors& whole) const;

  const ProblemTensors& whole_;
  SequenceLayout query_layout_;
  SequenceLayout key_layout_;
  HostTensor q_, k_, v_, dout_, dlse_;
  HostTensor out_, lse_, dq_, dk_, dv_, dbias_, dsinks_;
};

// Both passes, or the forward pass alone, by local ranks in threads, on whole tensors: the outputs in `whole` are written.
// Returns the facts of every rank for `pass`.
std::vector<DistributedFacts> run_on_local_ranks(const ProblemTensors& whole, Pass pass, int ranks,
                                                 const DistributedOptions& options);
// The same with one rank on each of these devices.
std::vector<DistributedFacts> run_on_local_ranks(const ProblemTensors& whole, Pass pass,
                                                 const std::vector<Device>& devices, const DistributedOptions& options);
// One rank's part of that, with any communicator; `write` says whether this rank's `whole` receives the outputs.
DistributedFacts run_on_rank(const ProblemTensors& whole, Pass pass, Communicator& communicator,
                             const DistributedOptions& options, bool write);

}  // namespace tessera::cli
