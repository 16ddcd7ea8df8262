// The images of the Hopper kernels: their names, and the sources of those that are compiled when they are first used.
#pragma once

#include <initializer_list>
#include <span>

#include "cuda/kernel.h"
#include "cuda/tile/program.h"
#include "cuda/tile/table_program.h"
#include "tessera/problem.h"

namespace tessera::internal {

// A table of kernels: its name, in small letters, is that of its macros and the first part of its images' names.
struct KernelFamily {
  std::string_view name;
  std::string_view header;
};
inline constexpr KernelFamily kForwardFamily{"sm90_forward", "cuda/sm90/fwd/kernel.cuh"};
inline constexpr KernelFamily kBackwardFamily{"sm90_backward", "cuda/sm90/bwd/kernel.cuh"};
inline constexpr KernelFamily kBackwardKeysFamily{"sm90_backward_keys", "cuda/sm90/bwd_wide/kernel.cuh"};
inline constexpr KernelFamily kBackwardQueriesFamily{"sm90_backward_queries", "cuda/sm90/bwd_wide/kernel.cuh"};

// The image of a row (its columns without the build set) for the mask and dtype of a problem and, where `features` is not 0,
// a score program.
KernelImage sm90_image(const KernelFamily& family, std::initializer_list<int> columns, const Problem& problem,
                       std::uint32_t features);

// Of ScoreFeature: the modifiers that kernels of the backward pass are compiled for. Sinks are in LSE, and their gradient has a
// kernel of its own.
std::uint32_t backward_features(const Problem& problem);

// A score program that a table has for this head dim, under dense and causal masks.
struct ProgramRow {
  int head_dim;
  TableProgram program;
};
// Whether a build of all kernels has one for the problem, whose program this is.
bool in_tables(const Problem& problem, std::uint32_t program, std::span<const ProgramRow> rows);

// That neither the build has a kernel (or "backward kernel") for the problem nor one can be compiled, and why. `in_tables`: another
// build has one.
std::string no_kernel(const Problem& problem, std::uint32_t features, std::string_view kernel, bool in_tables);

}  // namespace tessera::internal
