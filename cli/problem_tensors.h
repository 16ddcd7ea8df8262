// Random tensors for a Problem: seeded inputs, poisoned outputs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/host_tensor.h"
#include "tessera/plan.h"

namespace tessera::cli {

// How many of StrideKind take turns: all but padded16.
inline constexpr int kMixedKinds = 3;

// What a Problem leaves open about its tensors.
struct TensorOptions {
  std::uint64_t seed = 0;
  std::optional<StrideKind> strides = StrideKind::packed;  // nullopt: packed, heads_first and padded take turns
  bool aligned16 = false;                                  // padded16 wherever `strides` says padded
  double magnitude = 1.0;        // standard deviation of Q and K: larger makes the softmax steeper
  bool alibi_per_batch = false;  // slopes [batch, heads_q] instead of [heads_q]
  bool dlse = false;             // a gradient with respect to LSE
  bool bias_holes = false;       // one bias in eight is -inf, which hides the pair
  bool bias_expanded = false;    // the bias repeats over the batch and the heads by strides of 0
  bool specials = false;         // a few NaN and infinities among Q, K and V

  bool operator==(const TensorOptions&) const = default;
};

// Every tensor of both passes. The forward pass fills `out` and `lse`, which the backward pass reads.
class ProblemTensors {
 public:
  ProblemTensors(const Problem& problem, const TensorOptions& options);

  const Problem& problem() const { return problem_; }
  ForwardTensors forward() const;
  BackwardTensors backward() const;

  // The same inputs, value for value, for the same problem in float64: what the oracle is asked. Outputs are poisoned.
  ProblemTensors widened() const;

  // The same tensors under another mask.
  void set_mask(Mask mask) { problem_.mask = std::move(mask); }
  void poison_outputs();
  // Calls `visit` with every output of one pass that is present: "O" and "LSE", or "dQ", "dK", "dV", "dbias" and "dsinks".
  void for_each_output(Pass pass, const std::function<void(const std::string&, const HostTensor&)>& visit) const;

  HostTensor q, k, v, dout, dlse, bias, alibi_slopes, sinks;
  HostTensor key_lengths, page_table;  // of a cache: the first sequence is full, the others have random lengths
  HostTensor out, lse, dq, dk, dv, dbias, dsinks;

 private:
  ProblemTensors() = default;
  void allocate_outputs(const TensorOptions& options);
  ScoreTensors score() const;

  Problem problem_;
  bool bias_expanded_ = false;
};

// Shape of a [batch, seq, heads, dim] or ragged [total, heads, dim] tensor of `problem`, or of a pool of pages that has a few
// more than the sequences, and of its LSE.
std::vector<std::int64_t> token_shape(const Problem& problem, bool query_side, std::int64_t dim);
std::vector<std::int64_t> lse_shape(const Problem& problem);

// "packed", .., or "mixed" and "mixed16" where the kinds take turns.
std::string strides_text(const TensorOptions& options);

// `problem` with float64 for every dtype.
Problem widened(Problem problem);

}  // namespace tessera::cli
