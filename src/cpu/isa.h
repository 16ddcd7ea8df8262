// The instruction sets that the CPU kernels are compiled for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera::internal {

struct CpuKernels;

// Those that this build has and this CPU runs, best first. Never empty.
const std::vector<const CpuKernels*>& available_kernels();

// Whether `isa` or, if it is empty, TESSERA_ISA names one.
bool isa_is_forced(std::string_view isa);

// The kernels for `isa`; for an empty name TESSERA_ISA decides, and without it the best are taken.
// Throws Error(invalid_argument) that lists the accepted names.
const CpuKernels& select_kernels(std::string_view isa);

}  // namespace tessera::internal
