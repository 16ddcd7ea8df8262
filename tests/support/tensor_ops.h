// Small operations on tensors and lists of values that the tests share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "cli/problem_tensors.h"
#include "tessera/plan.h"

namespace tessera::test {

using Values = std::vector<double>;

// Writes `values`, in logical order, rounded to the tensor's dtype.
void assign(cli::HostTensor& tensor, const Values& values);

// The part [begin, begin + count) of one axis.
TensorView slice(TensorView view, int axis, std::int64_t begin, std::int64_t count);
ConstTensorView slice(ConstTensorView view, int axis, std::int64_t begin, std::int64_t count);

// All elements in logical order.
Values values_of(const ConstTensorView& view);

// ||actual - expected|| / ||expected||; ||actual|| where everything expected is 0. NaN when the lengths differ.
double relative_error(const Values& actual, const Values& expected);

// Whether both hold the same numbers bit by bit, all NaNs being one.
bool bitwise_equal(const Values& a, const Values& b);

// Every output of one pass, in the order of ProblemTensors::for_each_output.
struct NamedValues {
  std::string name;
  Values values;
};
using Outputs = std::vector<NamedValues>;
Outputs outputs_of(const cli::ProblemTensors& tensors, Pass pass);
bool bitwise_equal(const Outputs& a, const Outputs& b);

// Runs one pass on poisoned outputs (the backward pass reads the `out` and `lse` that are there) and returns them. `device`
// is the one that the plan was made for.
Outputs run_pass(cli::ProblemTensors& tensors, const Plan& plan, const Device& device = {});

// Both passes with plans for `options`: the outputs of the forward pass, then those of the backward pass.
Outputs run_both(cli::ProblemTensors& tensors, const PlanOptions& options);

}  // namespace tessera::test
