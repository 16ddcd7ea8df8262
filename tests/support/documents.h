// Packed documents of even lengths.
#pragma once

#include <cstdint>

#include "tessera/mask.h"

namespace tessera::test {

// Sequence b of the batch holds b + 3 documents.
inline Segments documents(std::int64_t batch, std::int64_t queries, std::int64_t keys) {
  Segments segments;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < queries; ++i)
      segments.query.push_back(static_cast<std::int32_t>(i * (b + 3) / queries));
    for (std::int64_t j = 0; j < keys; ++j) segments.key.push_back(static_cast<std::int32_t>(j * (b + 3) / keys));
  }
  return segments;
}

}  // namespace tessera::test
