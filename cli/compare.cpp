#include "cli/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "cli/run_plan.h"
#include "core/half.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

constexpr double kFloat32Allowed = 2e-6;
constexpr double kFloat64Allowed = 1e-11;
constexpr double kTf32Roundoff = 0x1p-11;
// A baseline that is wrong must not excuse the others.
constexpr double kMostRoundings = 8;
// Of fewer numbers than this the baseline may have hit the oracle by luck.
constexpr std::size_t kFewNumbers = 256;
constexpr double kReducedSlack = 5;
constexpr double kMostScoreRounding = 1e-4;
constexpr int kOtherDraws = 3;

// Its place among the outputs.
constexpr std::size_t kLseOutput = 1;

using Norms = std::map<std::string, double>;

double norm(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) {
    sum += std::isfinite(value) ? value * value : 0;
  }
  return std::sqrt(sum);
}

double rounded(double value, DType dtype) {
  double storage = 0;
  internal::store_element(&storage, dtype, 0, value);
  return internal::load_element(&storage, dtype, 0);
}

// 0: finite; otherwise which of NaN, inf and -inf.
int special_class(double value) { return std::isnan(value) ? 1 : !std::isinf(value) ? 0 : value > 0 ? 2 : 3; }

PlanFacts run(const ProblemTensors& tensors, Pass pass, const PlanOptions& options) {
  const Plan plan = Plan::make(tensors.problem(), pass, options);
  run_plan(plan, options.device, tensors);
  return plan.facts();
}

PlanOptions only(const char* impl, int threads = 0) {
  PlanOptions options;
  options.impl = impl;
  options.threads = threads;
  return options;
}

void run_oracle(const ProblemTensors& tensors, bool backward) {
  run(tensors, Pass::forward, only("reference"));
  if (backward) {
    run(tensors, Pass::backward, only("reference"));
  }
}

// D of the backward pass, rowsum(dO * O), in the order of LSE.
std::vector<double> subtracted_term(const ProblemTensors& tensors) {
  const Problem& problem = tensors.problem();
  const std::vector<double> out = tensors.out.values();
  const std::vector<double> dout = tensors.dout.values();
  const std::int64_t sequences = problem.ragged() ? 1 : problem.batch;
  const std::int64_t tokens = problem.ragged() ? problem.total_q() : problem.seq_q;
  std::vector<double> result;
  for (std::int64_t b = 0; b < sequences; ++b) {
    for (std::int64_t h = 0; h < problem.heads_q; ++h) {
      for (std::int64_t i = 0; i < tokens; ++i) {
        const auto row = static_cast<std::size_t>(((b * tokens + i) * problem.heads_q + h) * problem.dim_v);
        double sum = 0;
        for (std::size_t c = row; c < row + static_cast<std::size_t>(problem.dim_v); ++c) {
          sum += out[c] * dout[c];
        }
        result.push_back(sum);
      }
    }
  }
  return result;
}

// The typical size of each output. Since dS = P (dP - D + dLSE), adding D to dLSE leaves D out.
Norms typical_sizes(const Problem& problem, const CheckOptions& options) {
  Norms sizes;
  for (int draw = 1; draw <= kOtherDraws; ++draw) {
    TensorOptions other = options.tensors;
    other.seed += static_cast<std::uint64_t>(draw);
    other.strides = StrideKind::packed;
    other.specials = false;
    other.dlse = true;
    ProblemTensors tensors(widened(problem), other);
    run_oracle(tensors, false);
    if (options.backward) {
      std::vector<double> dlse = tensors.dlse.values();
      std::ranges::transform(dlse, subtracted_term(tensors), dlse.begin(), std::plus<>());
      auto next = dlse.begin();
      tensors.dlse.fill([&] { return *next++; });
      run(tensors, Pass::backward, only("reference"));
    }
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      if (pass == Pass::forward || options.backward) {
        tensors.for_each_output(pass, [&](const std::string& name, const HostTensor& tensor) {
          sizes[name] = std::max(sizes[name], norm(tensor.values()));
        });
      }
    }
  }
  return sizes;
}

struct Output {
  std::string name;
  DType dtype;
  std::vector<double> values;
  bool gaps_intact;
};

std::vector<Output> outputs_of(const ProblemTensors& tensors, bool backward) {
  std::vector<Output> result;
  const auto add = [&](const std::string& name, const HostTensor& tensor) {
    result.push_back({name, tensor.view().dtype, tensor.values(), tensor.gaps_intact()});
  };
  tensors.for_each_output(Pass::forward, add);
  if (backward) {
    tensors.for_each_output(Pass::backward, add);
  }
  return result;
}

double largest_score(std::span<const double> oracle_lse) {
  double largest = 0;
  for (const double lse : oracle_lse) {
    largest = std::max(largest, std::isfinite(lse) ? std::abs(lse) : 0);
  }
  return largest;
}

// What a float32 score keeps of its digits: a score of size L is exact to L roundings, and so, relatively, is its weight.
double score_rounding(std::span<const double> oracle_lse) {
  return std::min(largest_score(oracle_lse) * unit_roundoff(DType::float32), kMostScoreRounding);
}

// The same where both factors of each product are rounded, which makes half a rounding of a score on average.
double tf32_allowed(std::span<const double> oracle_lse) {
  constexpr double kRoundings = 6;
  return kTf32Roundoff * std::max(kRoundings, largest_score(oracle_lse) / 2);
}

double allowed_error(const Problem& problem, const PlanOptions& plan, const Output& output,
                     std::optional<double> standard_error, std::span<const double> oracle_lse) {
  if (problem.dtype == DType::float64) {
    return kFloat64Allowed;
  }
  const bool few = output.values.size() < kFewNumbers;
  // Sums of many gradients of either sign.
  const bool reduced = few && (output.name == "dbias" || output.name == "dsinks");
  const double slack = reduced ? kReducedSlack : 1;
  if (problem.dtype == DType::float32 && plan.float32_products == Float32Products::tf32) {
    return tf32_allowed(oracle_lse) * slack;
  }
  const double float32_allowed = std::max(kFloat32Allowed, score_rounding(oracle_lse)) * slack;
  if (problem.dtype == DType::float32) {
    return float32_allowed;
  }
  const double rounding = unit_roundoff(problem.dtype);
  double standard = standard_error.value_or(rounding);
  standard = few ? std::max(standard, rounding) : standard;
  standard = std::min(standard, kMostRoundings * rounding);
  return std::max((2 * standard + unit_roundoff(output.dtype)) * slack, float32_allowed);
}

std::string describe_mismatch(const Output& output, std::span<const double> reference, std::size_t element) {
  return fmt::format("element {} is {}, the oracle's is {}", element, output.values[element], reference[element]);
}

// The outputs of `standard` on the same inputs; nothing where it refuses.
std::vector<Output> standard_outputs(const Problem& problem, const CheckOptions& options) {
  try {
    const ProblemTensors tensors(problem, options.tensors);
    run(tensors, Pass::forward, only("standard", options.plan.threads));
    if (options.backward) {
      run(tensors, Pass::backward, only("standard", options.plan.threads));
    }
    return outputs_of(tensors, options.backward);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) {
      throw;
    }
    return {};
  }
}

// What the outputs of a problem are judged by: those of the oracle and of `standard` on the same inputs.
class Judge {
 public:
  Judge(const Problem& problem, const CheckOptions& options, const ProblemTensors& inputs)
      : problem_(problem), options_(options), standard_(standard_outputs(problem, options)) {
    const ProblemTensors oracle = inputs.widened();
    run_oracle(oracle, options.backward);
    expected_ = outputs_of(oracle, options.backward);
  }

  bool has_standard() const { return !standard_.empty(); }

  std::vector<OutputCheck> check(const std::vector<Output>& found, const PlanOptions& plan) {
    std::vector<OutputCheck> checks;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const std::vector<double>& expected = expected_[i].values;
      const Difference difference = compare(found[i].values, expected, found[i].dtype);
      std::optional<double> standard_error;
      if (has_standard()) {
        standard_error = compare(standard_[i].values, expected, found[i].dtype).relative();
      }
      OutputCheck check{found[i].name, difference.relative(), 0, false, ""};
      check.allowed = allowed_error(problem_, plan, found[i], standard_error, expected_[kLseOutput].values);
      if (difference.mismatch) {
        check.mismatch = describe_mismatch(found[i], expected, *difference.mismatch);
      } else if (!found[i].gaps_intact) {
        check.mismatch = "memory outside the tensor's elements was written";
      } else if (!check.ok()) {
        typical_ = typical_ ? typical_ : typical_sizes(problem_, options_);
        const double size = typical_->at(check.output);
        check.by_typical_size = size > difference.reference_norm;
        check.error = check.by_typical_size ? difference.error_norm / size : check.error;
      }
      checks.push_back(std::move(check));
    }
    return checks;
  }

 private:
  const Problem& problem_;
  const CheckOptions& options_;
  std::vector<Output> standard_;
  std::vector<Output> expected_;
  std::optional<Norms> typical_;
};

}  // namespace

double Difference::relative() const {
  return error_norm == 0       ? 0
         : reference_norm == 0 ? std::numeric_limits<double>::infinity()
                               : error_norm / reference_norm;
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 0x1p-53;
    case DType::float32:
      return 0x1p-24;
    case DType::float16:
      return 0x1p-11;
    case DType::bfloat16:
      return 0x1p-8;
    case DType::int32:
      break;
  }
  return 0;
}

Difference compare(std::span<const double> values, std::span<const double> reference, DType stored) {
  Difference difference;
  double error = 0;
  double size = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const int found = special_class(values[i]);
    if (found != special_class(rounded(reference[i], stored))) {
      difference.mismatch = difference.mismatch.value_or(i);
    } else if (found == 0) {
      error += (values[i] - reference[i]) * (values[i] - reference[i]);
      size += reference[i] * reference[i];
    }
  }
  difference.error_norm = std::sqrt(error);
  difference.reference_norm = std::sqrt(size);
  return difference;
}

bool CheckResult::ok() const {
  return std::all_of(outputs.begin(), outputs.end(), [](const OutputCheck& check) { return check.ok(); });
}

CheckResult check_problem(const Problem& problem, const CheckOptions& options) {
  return check_problem(problem, options, std::span(&options.plan, 1)).front();
}

std::vector<CheckResult> check_problem(const Problem& problem, const CheckOptions& options,
                                       std::span<const PlanOptions> plans) {
  std::vector<CheckResult> results;
  std::optional<Judge> judge;
  for (const PlanOptions& plan : plans) {
    CheckResult result;
    const ProblemTensors tensors(problem, options.tensors);
    result.forward = run(tensors, Pass::forward, plan);
    if (options.backward) {
      result.backward = run(tensors, Pass::backward, plan);
    }
    if (!judge) {
      judge.emplace(problem, options, tensors);
    }
    result.has_standard = judge->has_standard();
    result.outputs = judge->check(outputs_of(tensors, options.backward), plan);
    results.push_back(std::move(result));
  }
  return results;
}

CheckResult check_outputs(const ProblemTensors& computed, const CheckOptions& options) {
  Judge judge(computed.problem(), options, computed);
  CheckResult result;
  result.has_standard = judge.has_standard();
  result.outputs = judge.check(outputs_of(computed, options.backward), options.plan);
  return result;
}

}  // namespace tessera::cli
