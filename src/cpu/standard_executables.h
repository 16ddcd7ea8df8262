// The two passes of the standard algorithm.
#pragma once

#include "cpu/standard_geometry.h"
#include "cpu/standard_scores.h"
#include "plan/impl.h"
#include "plan/workspace.h"

namespace tessera::internal {

// S = scale Q K^T, P = softmax(S), O = P V: each step over the whole problem before the next begins.
class StandardForward : public Executable {
 public:
  StandardForward(const Problem& problem, int threads);
  PlanFacts facts() const override;
  using Executable::run;
  void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override;

 private:
  void pack(const ForwardTensors& tensors, std::span<std::byte> workspace) const;
  void softmax(const ForwardTensors& tensors, std::span<std::byte> workspace) const;
  void multiply_values(const ForwardTensors& tensors, std::span<std::byte> workspace) const;

  StandardGeometry geometry_;
  WorkspaceLayout layout_;
  WorkspaceSlot<float> scores_;  // S, then P
  WorkspaceSlot<float> q_, k_, v_, out_;
  WorkspaceSlot<std::uint8_t> v_flags_;
};

// S and P again, dV = P^T dO, dP = dO V^T, dS = P o (dP - D + dLSE), dQ = scale dS K, dK = scale dS^T Q.
class StandardBackward : public Executable {
 public:
  StandardBackward(const Problem& problem, int threads);
  PlanFacts facts() const override;
  using Executable::run;
  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const override;

 private:
  void pack(const BackwardTensors& tensors, std::span<std::byte> workspace) const;
  void score_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace, const Band& band) const;
  void score_gradient_row(const BackwardTensors& tensors, std::span<std::byte> workspace, const Band& band,
                          const RowModifiers& modifiers, std::int64_t query) const;
  void bias_gradient(const TensorView& dbias, const float* score_gradient) const;
  void sink_gradient(const BackwardTensors& tensors, const float* delta) const;
  void through_score(std::span<std::byte> workspace) const;
  void query_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace) const;
  void key_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace) const;

  StandardGeometry geometry_;
  WorkspaceLayout layout_;
  WorkspaceSlot<float> weights_;           // S, then P with dropout
  WorkspaceSlot<float> score_gradient_;    // dP, then dS
  WorkspaceSlot<float> score_derivative_;  // where scores are bent, shaped as S
  WorkspaceSlot<float> q_, k_, v_, dout_;
  WorkspaceSlot<float> delta_;  // D - dLSE of each query row
  WorkspaceSlot<float> dq_, dk_, dv_;
  WorkspaceSlot<std::uint8_t> q_flags_, k_flags_, dout_flags_;
  WorkspaceSlot<std::uint8_t> blind_;  // query rows whose every score is -inf: their gradients are zero
};

}  // namespace tessera::internal
