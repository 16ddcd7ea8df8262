// Flags for every field of Problem, TensorOptions and PlanOptions: the one place where words become a problem.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/function_flags.h"
#include "cli/mask_flags.h"
#include "cli/problem_tensors.h"
#include "tessera/plan.h"

namespace tessera::cli {

// The letters of --bias, in the order of the axes.
inline constexpr std::string_view kBiasAxes = "bhqk";

class ProblemFlags {
 public:
  // A command sets its own defaults before the command line is read.
  std::int64_t batch = 1;
  std::int64_t seq = 1024;
  std::int64_t heads = 8;
  std::int64_t dim = 64;
  DType default_dtype = DType::float32;

  // What the tensors say: their sizes and dtypes, and which score tensors there are.
  void add_shape(::CLI::App& app);
  // What tensors do not say: lengths of sequences, mask, scores, dropout.
  void add_options(::CLI::App& app);

  // Throws Error(invalid_argument) for flags that contradict each other and for a problem that validate() refuses.
  Problem problem() const;
  // With what `shaped` says instead of the flags of add_shape.
  Problem problem(Problem shaped) const;
  // With seq_q and seq_k of `length`, but for those that a flag fixes.
  Problem problem_of_length(std::int64_t length) const;

  // The blocks of --block-size over the lengths of `problem`.
  BlockGrid block_grid(const Problem& problem) const { return mask_.grid(problem); }

  // Whether a flag fixed both lengths, so that there is nothing to sweep.
  bool lengths_fixed() const { return lengths_ || seq_given_ || (seq_q_ && seq_k_); }
  bool ragged_given() const { return lengths_.has_value(); }
  // Sets the lengths of --lengths.
  void make_ragged(Problem& problem) const;

 private:
  Problem shape(std::int64_t length) const;
  Problem complete(Problem shaped, bool from_flags) const;
  void add_lengths(::CLI::App& app);
  void add_dropout(::CLI::App& app);
  void apply_bias(Problem& problem) const;

  std::optional<DType> dtype_;
  std::optional<DType> output_dtype_;
  bool batch_given_ = false, seq_given_ = false;
  std::optional<std::int64_t> seq_q_, seq_k_, kv_heads_, dim_v_;
  std::optional<std::vector<std::int64_t>> lengths_, lengths_k_;
  std::vector<std::int64_t> key_lengths_;
  MaskFlags mask_;
  std::optional<float> scale_;
  float softcap_ = 0;
  bool alibi_ = false;
  bool sinks_ = false;
  std::string bias_;  // letters of the axes that the bias has, or "1"
  std::optional<DType> bias_dtype_;
  FunctionFlags functions_;
  Dropout dropout_;
};

void add_tensor_flags(::CLI::App& app, TensorOptions& options);
// The flags of `app` that describe a problem and its tensors, without --seed.
std::vector<std::string> problem_flag_names(const ::CLI::App& app);
// --device cuda makes bfloat16 the default dtype of `problem`.
void add_plan_flags(::CLI::App& app, PlanOptions& options, ProblemFlags* problem = nullptr);

// The flags that give this problem and these tensors again.
std::string to_flags(const Problem& problem, const TensorOptions& options);

}  // namespace tessera::cli
