// LSE and delta of the backward pass in a form that tensor cores can subtract.
#pragma once

#include <cstdint>

namespace tessera {

// Numbers that a product adds to scores and their gradients, of one row of queries: bfloat16 whose sums are -LSE over the scale
// of scores and -delta to 24 bits, and two zeros.
struct StatisticParts {
  static constexpr int kParts = 3;
  std::uint16_t lse[kParts], delta[kParts];
  std::uint16_t zeros[2];
};

}  // namespace tessera
