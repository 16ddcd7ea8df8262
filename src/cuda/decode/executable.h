// The executable of the decode Impl.
#pragma once

#include "plan/impl.h"

namespace tessera::internal {

// Why the build, or the shared memory of the device, has no kernel for the problem; nullopt when there is one.
std::optional<std::string> decode_missing(const Problem& problem, const PlanOptions& options);
std::unique_ptr<const Executable> make_decode(const Problem& problem, const PlanOptions& options);

}  // namespace tessera::internal
