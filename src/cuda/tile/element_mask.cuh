// Hides single scores of a tile that a mask cuts: fragments of the layout that ptx/mma.cuh and tile/softmax.cuh describe.
#pragma once

#include "cuda/ptx/device.cuh"
#include "cuda/tile/listed.h"
#include "cuda/tile/work.cuh"

namespace tessera::tile {

// Whether every query of [first_query, first_query + tile_q) within the sequence sees every key of the tile from first_key.
TESSERA_DEVICE bool sees_whole_tile(const Bounds& bounds, const Sequence& sequence, int first_query, int tile_q,
                                    int first_key, int tile_k) {
  const int last_query = min(first_query + tile_q, sequence.queries) - 1;
  const int last_key = first_key + tile_k - 1;
  return last_key < sequence.keys && last_query + bounds.lower <= first_key && first_query + bounds.upper >= last_key;
}

// Scores outside the band or behind the last key. `query` and `key` are those of the thread's first element.
template <int kCount>
TESSERA_DEVICE void hide_outside(float (&r_scores)[kCount], const Bounds& bounds, int keys, int query, int key) {
  constexpr float kHidden = -__builtin_huge_valf();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int first = query + 8 * r + bounds.lower - key;
    const int last = min(query + 8 * r + bounds.upper, keys - 1) - key;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * i + e;
        if (column < first || column > last) {
          r_scores[4 * i + 2 * r + e] = kHidden;
        }
      }
    }
  }
}

// The first words of the bit mask of a visit; `bits` is not negative.
TESSERA_DEVICE const std::uint32_t* bits_of(const Listed& listed, int bits, int tile_q, int tile_k) {
  return listed.bits + static_cast<std::int64_t>(bits) * (tile_q * tile_k / 32);
}

// Scores that the bit mask of a visit leaves out. `row` and `column` are those of the thread's first element in the tile, the
// fragment's columns not crossing a multiple of 32 before its own 32nd.
template <int kTileK, int kCount>
TESSERA_DEVICE void hide_unlisted(float (&r_scores)[kCount], const std::uint32_t* g_bits, int row, int column) {
  constexpr float kHidden = -__builtin_huge_valf();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::uint32_t* const g_row = g_bits + ((row + 8 * r) * kTileK + column / 32 * 32) / 32;
#pragma unroll
    for (int i = 0; i < kCount / 4; i += 4) {
      const std::uint32_t word = __ldg(g_row + i / 4) >> (column % 32);
#pragma unroll
      for (int n = 0; n < 4 && i + n < kCount / 4; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if ((word >> (8 * n + e) & 1U) == 0) {
            r_scores[4 * (i + n) + 2 * r + e] = kHidden;
          }
        }
      }
    }
  }
}

}  // namespace tessera::tile
