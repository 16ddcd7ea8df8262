// One problem through an Impl, judged against the oracle by the numerics contract.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/problem_tensors.h"

namespace tessera::cli {

struct CheckOptions {
  TensorOptions tensors;
  PlanOptions plan;
  bool backward = true;
};

// One output against the oracle's.
struct OutputCheck {
  std::string output;  // "O", "LSE", "dQ", "dK", "dV", "dbias" or "dsinks"
  double error = 0;    // ||x - ref|| / ||ref|| over the positions where both are finite
  double allowed = 0;
  bool by_typical_size = false;  // relative to the output's typical size instead of ||ref||: see check_problem
  std::string mismatch;          // not empty: what is wrong before any norm, at which element

  bool ok() const { return mismatch.empty() && error <= allowed; }
};

struct CheckResult {
  PlanFacts forward;
  std::optional<PlanFacts> backward;
  bool has_standard = false;  // the standard Impl took the problem, so that its error is part of the bounds
  std::vector<OutputCheck> outputs;

  bool ok() const;
};

// Runs the forward pass and, on its O and LSE, the backward pass of the Impl that `options.plan` selects, on its device,
// and, on the CPU, those of `standard` and of the oracle, on the same rounded inputs, and compares each output. Also
// checked: that nothing outside the outputs' elements is written.
//
// Allowed: for float32 problems 2e-6, where products are rounded to TF32 3 * 2^-10, or 2^-12 for each unit of the largest LSE; for the others twice the error of `standard` plus one rounding of the output's dtype.
// The error of `standard` counts as one rounding of the problem's dtype where it refuses, and as no less for an output of
// a few numbers, which it may hit by luck. Two things take more:
// - scores beyond 33: a float32 score of size L is exact to L roundings, 2^-24 L, and so is its weight (at most 1e-4);
// - dbias and dsinks of a few numbers, each a sum of many terms of either sign: five times as much.
//
// An error beyond that is measured once more relative to the typical size of the output, if that is larger than ||ref||:
// a few random numbers, or the difference that is the gradient of a softmax over one key, may cancel to nearly nothing,
// and no algorithm has a small error relative to nothing. The typical size is the largest norm over three other draws of
// the same problem, with the subtracted term of the softmax's gradient left out.
//
// Throws Error as Plan::make does.
CheckResult check_problem(const Problem& problem, const CheckOptions& options);

// The same for each of `plans`, in place of options.plan, by one run of the oracle and of `standard`.
std::vector<CheckResult> check_problem(const Problem& problem, const CheckOptions& options,
                                       std::span<const PlanOptions> plans);

// Judges outputs that were computed elsewhere: those in `computed`, whose inputs must be those of options.tensors. The
// facts of the result are empty.
CheckResult check_outputs(const ProblemTensors& computed, const CheckOptions& options);

// The error norm of `values` against `reference`.
struct Difference {
  double error_norm = 0;      // ||x - ref||
  double reference_norm = 0;  // ||ref||
  // The first element that is NaN, inf or -inf in one of them alone, once `reference` is rounded to `stored`.
  std::optional<std::size_t> mismatch;
  double relative() const;
};
Difference compare(std::span<const double> values, std::span<const double> reference, DType stored);

// Half the distance from 1 to the next number: the largest relative error of one rounding.
double unit_roundoff(DType dtype);

}  // namespace tessera::cli
