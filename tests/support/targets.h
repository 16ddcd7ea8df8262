// What a test can be run on: every available Impl, each instruction set of those that have several, and GPUs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/plan.h"

namespace tessera::test {

struct Target {
  std::string impl;
  std::string isa;  // empty for Impls without a choice
  int threads = 1;  // more only where threads are the question: on a busy machine they wait for each other
  Device device{};
  Float32Products float32_products = Float32Products::exact;

  PlanOptions options() const;
  // "flash/AVX2", "reference", "sm90 on cuda:0"
  std::string name() const;
};

// The Impls that a plan on the CPU can have here: "flash", "reference" and, where this build has it, "standard".
std::vector<std::string> cpu_impls();

// Those, and "flash" once for each instruction set that cpu_info() lists. None of a GPU.
std::vector<Target> all_targets();
// The last of these alone.
std::vector<Target> flash_targets();
// Of all targets, flash with the best instruction set and one of the others, in turn.
std::vector<Target> two_targets(std::uint64_t turn);

// A GPU's Impl on the first device, where gpu_missing() has nothing to say.
std::vector<Target> gpu_targets(const std::string& impl = "sm90");
// Why no test of this Impl can run here.
std::optional<std::string> gpu_missing(const std::string& impl = "sm90");

// A plan for `target`. Fails the test unless the Impl and the instruction set are those that were asked for.
Plan make_plan(const Problem& problem, Pass pass, const Target& target);

// Whether `target` takes the problem; an Impl may refuse, with a reason, what it does not do.
bool accepts(const Problem& problem, Pass pass, const Target& target);

}  // namespace tessera::test
