// Products of tiles of float32 as pairs of float16, see tile/float_pairs.cuh: rows of pieces of 16 bytes, of high and of low parts in
// turn. Groups of 16 rows have a scale, and of P and dS each 16 rows that a warp has computed.
//
// Tensor cores truncate what they add to an accumulator, which would grow with the length of a sequence: only scores are summed by
// them, over 128 columns at most and with what is small apart; other products start from zero at every 16 of their depth and are
// added by an ordinary addition, which also takes the scales.
#pragma once

#include "cuda/sm80/bwd/fragments.cuh"
#include "cuda/tile/float_pairs.cuh"

namespace tessera::sm80 {

inline constexpr int kPairRows = 16;  // of a group

struct PairFragment {
  std::uint32_t high[4], low[4];
};

// Where a lane reads in tiles with rows of kRowBytes, as TileLanes.
template <int kRowBytes>
struct PairLanes {
  std::uint32_t by_rows;   // row lane % 16, pair lane / 16
  std::uint32_t by_eight;  // row lane % 8 + lane / 16 * 8, pair lane / 8 % 2

  TESSERA_DEVICE PairLanes() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    by_rows = offset(lane % 16, lane / 16);
    by_eight = offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  // Of the high parts of 8 columns.
  TESSERA_DEVICE static std::uint32_t offset(int row, int pair) {
    return row * kRowBytes + ((2 * pair ^ row % 8) << 4);
  }

  // Of the lane's row of A in [row][depth].
  TESSERA_DEVICE std::uint32_t a_address(std::uint32_t s_tile, int row, int depth) const {
    return s_tile + row * kRowBytes + (by_rows ^ depth / 8 << 5);
  }
  // A from [row][depth]; depth and row start at multiples of 16.
  TESSERA_DEVICE PairFragment a_rows(std::uint32_t s_tile, int row, int depth) const {
    return load(a_address(s_tile, row, depth));
  }
  // B from [column][depth].
  TESSERA_DEVICE PairFragment b_rows(std::uint32_t s_tile, int column, int depth) const {
    return load(s_tile + column * kRowBytes + (by_eight ^ depth / 8 << 5));
  }
  // A from [depth][row].
  TESSERA_DEVICE PairFragment a_columns(std::uint32_t s_tile, int row, int depth) const {
    return load_transposed(s_tile + depth * kRowBytes + (by_eight ^ row / 8 << 5));
  }
  // B from [depth][column].
  TESSERA_DEVICE PairFragment b_columns(std::uint32_t s_tile, int column, int depth) const {
    return load_transposed(s_tile + depth * kRowBytes + (by_rows ^ column / 8 << 5));
  }

 private:
  TESSERA_DEVICE static PairFragment load(std::uint32_t s_high) {
    PairFragment f;
    ptx::load_matrices(s_high, f.high[0], f.high[1], f.high[2], f.high[3]);
    ptx::load_matrices(s_high ^ 16, f.low[0], f.low[1], f.low[2], f.low[3]);
    return f;
  }
  TESSERA_DEVICE static PairFragment load_transposed(std::uint32_t s_high) {
    PairFragment f;
    ptx::load_matrices_transposed(s_high, f.high[0], f.high[1], f.high[2], f.high[3]);
    ptx::load_matrices_transposed(s_high ^ 16, f.low[0], f.low[1], f.low[2], f.low[3]);
    return f;
  }
};

template <class Element, int kRowBytes>
struct Lanes {
  using Type = TileLanes<Element, kRowBytes>;
};
template <int kRowBytes>
struct Lanes<ptx::float32, kRowBytes> {
  using Type = PairLanes<kRowBytes>;
};

// d += A B of block `half` of the 16 columns of B; `first`: d is that alone.
TESSERA_DEVICE void add_pair_product(float* d, const std::uint32_t (&a)[4], const std::uint32_t (&b)[4], int half,
                                     bool first) {
  if (first) {
    ptx::mma_first<ptx::float16>(d, a, b[2 * half], b[2 * half + 1]);
  } else {
    ptx::mma<ptx::float16>(d, a, b[2 * half], b[2 * half + 1]);
  }
}

// Products of one sum stand apart, since each waits for the one before it.
template <int kM, class Body>
TESSERA_DEVICE void for_each_block(const Body& body) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      body(m, half);
    }
  }
}

// r_sum += scale_of(m, n) A B over kDepth, for 16 rows m and 16 columns n.
template <int kDepth, int kM, int kElements, class LoadA, class LoadB, class Scale>
TESSERA_DEVICE void multiply_pair_scores(float (&r_sum)[kM][kElements], const LoadA& a_at, const LoadB& b_at,
                                         const Scale& scale_of) {
  float r_large[kM][kElements];
  float r_small[kM][kElements];
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    PairFragment a[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      a[m] = a_at(16 * m, depth);
    }
#pragma unroll
    for (int n = 0; n < kElements / 8; ++n) {
      const PairFragment b = b_at(16 * n, depth);
      const bool first = depth == 0;
      const auto at = [&](float (&r)[kM][kElements], int m, int half) { return r[m] + 8 * n + 4 * half; };
      for_each_block<kM>(
          [&](int m, int half) { add_pair_product(at(r_small, m, half), a[m].high, b.low, half, first); });
      for_each_block<kM>(
          [&](int m, int half) { add_pair_product(at(r_large, m, half), a[m].high, b.high, half, first); });
      for_each_block<kM>(
          [&](int m, int half) { add_pair_product(at(r_small, m, half), a[m].low, b.high, half, false); });
    }
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kElements / 8; ++n) {
      const float scale = scale_of(m, n);
#pragma unroll
      for (int i = 8 * n; i < 8 * n + 8; ++i) {
        r_sum[m][i] = fmaf(tile::join_pairs(r_large[m][i], r_small[m][i]), scale, r_sum[m][i]);
      }
    }
  }
}

// r_sum += A B over kDepth, where 16 of the depth from `depth` on are to be multiplied by scale_of(m, depth).
template <int kDepth, int kM, int kElements, class LoadA, class LoadB, class Scale>
TESSERA_DEVICE void multiply_pairs(float (&r_sum)[kM][kElements], const LoadA& a_at, const LoadB& b_at,
                                   const Scale& scale_of) {
#pragma unroll 2
  for (int depth = 0; depth < kDepth; depth += 16) {
    PairFragment a[kM];
    float scale[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      a[m] = a_at(16 * m, depth);
      scale[m] = scale_of(m, depth);
    }
#pragma unroll
    for (int n = 0; n < kElements / 8; ++n) {
      const PairFragment b = b_at(16 * n, depth);
      float sum[kM][2][4];
      for_each_block<kM>([&](int m, int half) { add_pair_product(sum[m][half], a[m].low, b.high, half, true); });
      for_each_block<kM>([&](int m, int half) { add_pair_product(sum[m][half], a[m].high, b.low, half, false); });
      for_each_block<kM>([&](int m, int half) { add_pair_product(sum[m][half], a[m].high, b.high, half, false); });
      for_each_block<kM>([&](int m, int half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& r = r_sum[m][8 * n + 4 * half + i];
          r = fmaf(sum[m][half][i], scale[m], r);
        }
      });
    }
  }
}

}  // namespace tessera::sm80
