// Reading a tile schedule: visits, and the bits that hide scores.
#pragma once

#include "cuda/tile/listed.h"
#include "cuda/tile/softmax.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::tile {

// Numbers of the visits of a row (or column). An empty row has one visit, number -1, which nothing attends to: what a row
// computes is defined even then.
TESSERA_DEVICE TileRange listed_visits(const ListedRows& rows, int row) {
  const TileRange visits{rows.begin[row], rows.begin[row + 1]};
  return visits.size() > 0 ? visits : TileRange{-1, 0};
}

TESSERA_DEVICE ListedVisit listed_visit(const ListedRows& rows, int number) {
  if (number < 0) {
    return {kNowhere, kNoneAttend};
  }
  const int2 words = __ldg(reinterpret_cast<const int2*>(rows.visits + number));
  return {words.x, words.y};
}

// To the L1 cache.
TESSERA_DEVICE void prefetch_visit(const ListedRows& rows, int number) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(rows.visits + max(number, 0)));
}

// On the token axis.
template <int kTile>
TESSERA_DEVICE int listed_first_row(const ListedVisit& visit, int sequence_row) {
  return visit.bits == kNoneAttend ? kNowhere : sequence_row + visit.tile * kTile;
}

// The bits of the two rows of a fragment (see softmax.cuh) of kColumns columns.
template <int kColumns>
class ListedBits {
 public:
  // Of mask `number`, whose tiles have `rows` rows; the fragment begins at `row`. Nothing where all attend.
  TESSERA_DEVICE void load(const std::uint32_t* g_bits, int number, int rows, int row) {
    static_assert(kColumns % 32 == 0);
    if (number == kNoneAttend) {
      clear();
    }
    if (number < 0) {
      return;
    }
    const std::uint32_t* const g_row = g_bits + (static_cast<std::int64_t>(number) * rows + row) * kWords;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < kWords; w += 2) {
        const uint2 pair = __ldg(reinterpret_cast<const uint2*>(g_row + 8 * r * kWords + w));
        r_words_[r][w] = pair.x;
        r_words_[r][w + 1] = pair.y;
      }
    }
  }

  TESSERA_DEVICE void hide(float (&r_scores)[kColumns / 2], float hidden = -__builtin_huge_valf()) const {
    std::uint32_t moved[2][kWords];  // the thread's columns are those of multiples of 8, and the next
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      moved[0][w] = r_words_[0][w] >> fragment_column();
      moved[1][w] = r_words_[1][w] >> fragment_column();
    }
#pragma unroll
    for (int i = 0; i < kColumns / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if ((moved[e >> 1][i / 4] & (1U << (8 * (i % 4) + (e & 1)))) == 0) {
          r_scores[4 * i + e] = hidden;
        }
      }
    }
  }

 private:
  static constexpr int kWords = kColumns / 32;

  TESSERA_DEVICE void clear() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      r_words_[0][w] = 0;
      r_words_[1][w] = 0;
    }
  }

  std::uint32_t r_words_[2][kWords];
};

}  // namespace tessera::tile
