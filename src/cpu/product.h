// What the matrix products of all instruction sets share.
#pragma once

#include <cstdint>

namespace tessera::internal {

// 4-byte units, and how far behind them those of the next plane are, where the operand is the sum of several.
template <class Unit>
struct OperandOf {
  Unit* units = nullptr;
  std::int64_t plane = 0;

  OperandOf at(std::int64_t offset) const { return {units + offset, plane}; }
  Unit* of_plane(std::int64_t n) const { return units + n * plane; }
};

// How a product meets what C held.
enum class Update {
  kStore,  // C = A B
  kAdd,    // C += A B
  kScale,  // C = scale(row) C + A B
};

}  // namespace tessera::internal
