// Online softmax over fragments of scores (Milakov and Gimelshein 2018; Dao et al. 2022, Algorithm 1), in powers of two.
//
// A warpgroup's accumulator of [64 x N]: thread t holds rows t / 32 * 16 + t % 32 / 4 + {0, 8}, and of every 8 columns the
// two from t % 4 * 2; element 4 i + 2 r + e is column 8 i + t % 4 * 2 + e of row r.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::tile {

// Row of the fragment's first half within the 64 of the warpgroup.
TESSERA_DEVICE int fragment_row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }
TESSERA_DEVICE int fragment_column() { return threadIdx.x % 4 * 2; }

// Sets the scores outside `first` .. `last` (for each of the two rows, relative to the thread's first column) to `hidden`. Columns
// are compile-time constants, so that each score costs one comparison with an immediate.
template <bool kBothEnds, int kCount>
TESSERA_DEVICE void hide_scores(float (&r_scores)[kCount], const int (&first)[2], const int (&last)[2],
                                float hidden = -__builtin_huge_valf()) {
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = 8 * i + (e & 1);
      if (column > last[e >> 1] || (kBothEnds && column < first[e >> 1])) {
        r_scores[4 * i + e] = hidden;
      }
    }
  }
}

// Of the two rows that a thread has a part of.
struct OnlineSoftmax {
  static constexpr float kHidden = -__builtin_huge_valf();  // what a hidden score is

  float maximum[2];  // of the scores so far, before the scale
  float sum[2];      // of this thread's weights alone
  float rescale[2];  // what the latest scores did to everything before them

  // Before any score.
  TESSERA_DEVICE void reset() {
    maximum[0] = maximum[1] = -__builtin_huge_valf();
    sum[0] = sum[1] = 0.0F;
  }

  // Replaces the first scores of a row by weights 2^(scale (s - maximum)). A warp has its scheduler nearly to itself while the other
  // warpgroups wait for products, so that the latency of chains counts: maxima and sums run in four of them for each row.
  template <int kCount>
  TESSERA_DEVICE void weigh_first(float (&r_scores)[kCount], float scale_log2) {
    constexpr int kChains = 4;
    float highest[2][kChains];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float pair = fmaxf(r_scores[4 * i + 2 * r], r_scores[4 * i + 2 * r + 1]);
        highest[r][i % kChains] = i < kChains ? pair : fmaxf(highest[r][i % kChains], pair);
      }
    }
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(fmaxf(highest[r][0], highest[r][1]), fmaxf(highest[r][2], highest[r][3]));
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFU, top[r], distance));
      }
    }
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      offset[r] = top[r] == -__builtin_huge_valf() ? 0.0F : top[r] * scale_log2;
      maximum[r] = top[r];
    }
    float total[2][kChains];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& score = r_scores[4 * i + e];
        score = ptx::exp2(fmaf(score, scale_log2, -offset[e >> 1]));
        float& chain = total[e >> 1][2 * (i & 1) + (e & 1)];
        chain = i < 2 ? score : chain + score;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = (total[r][0] + total[r][1]) + (total[r][2] + total[r][3]);
    }
  }

  template <int kCount>
  TESSERA_DEVICE void rescale_output(float (&r_output)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        r_output[4 * i + e] *= rescale[e >> 1];
      }
    }
  }

  // The sums of whole rows.
  TESSERA_DEVICE void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xFFFFFFFFU, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xFFFFFFFFU, sum[r], 2);
    }
  }
};

// Zeroes the rows [first, rows) of a tile of sub-tiles of 64 columns in shared memory, by a warpgroup: rows of another sequence
// or behind the keys in use, whose weights are 0 but which may hold NaN. `barrier` is a named one of this warpgroup.
template <int kRows, int kSubTiles>
TESSERA_DEVICE void clear_rows(std::uint8_t* s_tile, int first, int barrier) {
  constexpr int kWordsOfRow = 8;  // of 16 bytes
  for (int i = static_cast<int>(threadIdx.x % 128); i < (kRows - first) * kWordsOfRow * kSubTiles; i += 128) {
    const int row = first + i / (kWordsOfRow * kSubTiles);
    const int word = i % (kWordsOfRow * kSubTiles);
    reinterpret_cast<uint4*>(s_tile)[(word / kWordsOfRow * kRows + row) * kWordsOfRow + word % kWordsOfRow] = uint4{};
  }
  ptx::fence_async_shared();
  ptx::named_barrier_sync(barrier, 128);
}

// Fragments of a product as the A operand of the next one.
template <class Element, int kCount>
TESSERA_DEVICE void round_to(std::uint32_t (&r_packed)[kCount / 2], const float (&r_values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    r_packed[i] = ptx::pack<Element>(r_values[2 * i], r_values[2 * i + 1]);
  }
}

// A fragment, times `factor`, to a tile of 64 rows in shared memory: sub-tiles of 64 columns, swizzled as the copy engine
// expects them.
template <class Element, int kCount>
TESSERA_DEVICE void stage_rows(std::uint32_t s_tile, const float (&r_values)[kCount], const float (&factor)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = static_cast<int>(threadIdx.x % 128) / 32 * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < kCount / 4; i += 2) {
    const int chunk = i + lane / 16;
    std::uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      words[k] =
          ptx::pack<Element>(r_values[4 * i + 2 * k] * factor[k & 1], r_values[4 * i + 2 * k + 1] * factor[k & 1]);
    }
    ptx::store_matrices(s_tile + chunk / 8 * 64 * 128 + row * 128 + (chunk % 8 ^ row % 8) * 16, words[0], words[1],
                        words[2], words[3]);
  }
}

// Row `r` of a fragment, times `factor`, to `dim` columns of global memory in pieces of 16 bytes: a quad holds 8 columns
// of a row in every register, and after a transpose each of its lanes has 8 columns in four. `kAtOnce`: each piece is written by
// one instruction. Left to itself the compiler writes most of them in four, which saves it registers and takes longer.
template <class Element, bool kAtOnce = false, int kCount>
TESSERA_DEVICE void store_rows(const float (&r_values)[kCount], const float (&factor)[2],
                               std::uint16_t* const (&g_rows)[2], const bool (&stored)[2], int dim) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        words[k] = ptx::pack<Element>(r_values[4 * (i + k) + 2 * r] * factor[r],
                                      r_values[4 * (i + k) + 2 * r + 1] * factor[r]);
      }
      ptx::transpose_quad(words[0], words[1], words[2], words[3]);
      const int column = 8 * i + static_cast<int>(threadIdx.x % 4) * 8;
      if (stored[r] && column < dim) {
        if constexpr (kAtOnce) {
          ptx::store_words(g_rows[r] + column, words);
        } else {
          *reinterpret_cast<uint4*>(g_rows[r] + column) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
}

}  // namespace tessera::tile
