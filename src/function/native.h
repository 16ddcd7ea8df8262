// Functions that users write, compiled for this CPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tessera/score_function.h"

namespace tessera::internal {

// Consecutive keys of one query, whose sequence, head and positions are those of the problem.
inline FunctionRow function_row(const Positions& positions, std::int64_t batch, std::int64_t head, std::int64_t query,
                                std::int64_t first_key, std::int64_t count) {
  const auto place = [](std::int64_t start, std::int64_t i, std::int64_t stride) {
    return static_cast<int>(start + i * stride);
  };
  return {Index(place(positions.batch_start, batch, 1), place(positions.head_start, head, 1),
                place(positions.query_start, query, positions.query_stride),
                place(positions.key_start, first_key, positions.key_stride)),
          positions.key_stride, count};
}

// Why functions of source text cannot be compiled here; nullopt when they can, or when the program has compiled this one.
std::optional<std::string> native_unavailable(const ScoreFunction& function);

// The same function, compiled: native() has its rows. And those of a mask function. Source text is compiled at the first call, through the cache of kernels,
// and kept for the life of the process. Throws Error(invalid_argument) with the compiler's words for a source that does not
// compile, and Error(unsupported) where nothing can compile it.
ScoreFunction compiled(const ScoreFunction& function);
NativeMask native_mask(const MaskFunction& function);

}  // namespace tessera::internal
