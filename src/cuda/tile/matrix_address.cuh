// Where fragments lie in tiles of swizzled rows.
#pragma once

#include "cuda/tile/shared_rows.cuh"

namespace tessera::tile {

// Addresses of what ldmatrix reads: rows of 8 from a multiple of 8, and pairs of chunks. What differs between lanes is in
// `base`, so that the constants of an unrolled loop become immediates and one exclusive or.
template <int kRowBytes>
class MatrixAddress {
 public:
  TESSERA_DEVICE MatrixAddress(std::uint32_t s_tile, int lane_row, int lane_chunk)
      : base_(s_tile + lane_row * kRowBytes + (lane_chunk ^ lane_row % 8) * 16) {}
  // `row` is a multiple of 8, `chunk` of 2.
  TESSERA_DEVICE std::uint32_t at(int row, int chunk) const {
    return (base_ ^ chunk % 8 * 16) + row * kRowBytes + chunk / 8 * 128;
  }

 private:
  std::uint32_t base_;
};

}  // namespace tessera::tile
