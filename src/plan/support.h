// Which Impl takes what: every feature by itself, asked of the Impls, on a machine that has all they need.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/impl.h"

namespace tessera::internal {

// A problem with one feature beside what every Impl takes (bfloat16, 16 queries, 64 columns), or with two that meet.
struct SupportFeature {
  std::string_view group;
  std::string_view name;
  Problem problem;
  PlanOptions options{};
  // Passes in which the feature exists.
  bool forward = true, backward = true;
  // Tensors whose rows are not multiples of 16 bytes apart.
  bool odd_strides = false;

  bool has(Pass pass) const { return pass == Pass::forward ? forward : backward; }
};

// In the order of the documentation; each problem is valid.
std::vector<SupportFeature> support_features();

// Why the Impl does not take the feature in this pass, with whatever device and kernels it is made for; nullopt when it does.
std::optional<std::string> support_refusal(const Impl& impl, const SupportFeature& feature, Pass pass);

}  // namespace tessera::internal
