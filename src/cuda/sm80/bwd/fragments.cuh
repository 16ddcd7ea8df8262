// Products of tiles in shared memory: rows of 128 bytes or more whose pieces of 16 bytes are permuted within groups of eight,
// so that neither matrix loads nor single words of a column meet in a bank.
//
// 16-bit elements take one instruction for 16 x 8 x 16, tf32 one for 16 x 8 x 8. float32 has products of its own: pairs.cuh.
#pragma once

#include "cuda/tile/shared_rows.cuh"

namespace tessera::sm80 {

// The permutation of row `row`: a number that is XORed to the piece's. For words, neighbouring rows differ by two pieces, since
// eight lanes read two pieces of each of four rows.
template <class Element>
TESSERA_DEVICE constexpr int piece_permutation(int row) {
  return ptx::kSame<Element, ptx::tf32> ? ((row & 3) << 1 | (row >> 2 & 1)) : row & 7;
}

template <class Element, int kRowBytes>
TESSERA_DEVICE std::uint32_t piece_offset(int row, int piece) {
  return row * kRowBytes + ((piece ^ piece_permutation<Element>(row)) << 4);
}

// Fragments of one k-step, 32 bytes deep: A of 16 rows, B of two blocks of 8 columns.
template <class Element>
struct Operands {
  static constexpr int kDepth = 32 / tile::kElementBytes<Element>;
  static constexpr bool kWords = tile::kElementBytes<Element> == 4;
  struct Fragment {
    std::uint32_t words[4];
  };

  // What was loaded becomes what the instructions take.
  TESSERA_DEVICE static void prepare(Fragment& fragment) {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        fragment.words[i] = ptx::round_to_tf32(fragment.words[i]);
      }
    }
  }

  // The lane's part of an address, see TileLanes.
  TESSERA_DEVICE static void load(Fragment& f, std::uint32_t s_address) {
    ptx::load_matrices(s_address, f.words[0], f.words[1], f.words[2], f.words[3]);
    prepare(f);
  }

  // d += a b for block `kBlock` of b.
  template <int kBlock>
  TESSERA_DEVICE static void multiply(float* d, const Fragment& a, const Fragment& b) {
    if constexpr (kWords) {
      ptx::mma_tf32(d, a.words, b.words[2 * kBlock], b.words[2 * kBlock + 1]);
    } else {
      ptx::mma<Element>(d, a.words, b.words[2 * kBlock], b.words[2 * kBlock + 1]);
    }
  }
  // d = from + a b, of 16-bit elements.
  template <int kBlock>
  TESSERA_DEVICE static void multiply_first(float* d, const float (&from)[2], const Fragment& a, const Fragment& b) {
    ptx::mma_first<Element>(d, a.words, b.words[2 * kBlock], b.words[2 * kBlock + 1], from[0], from[1]);
  }
};

// What a product of 16-bit elements is added to, in place of what its registers hold: a number for each of a lane's rows.
template <int kM>
using RowSums = float[kM][2];

// Where a lane reads in tiles with rows of kRowBytes.
template <class Element, int kRowBytes>
struct TileLanes {
  using Fragment = typename Operands<Element>::Fragment;
  static constexpr int kPieceElements = 16 / tile::kElementBytes<Element>;
  std::uint32_t by_rows;   // row lane % 16, piece lane / 16
  std::uint32_t by_eight;  // row lane % 8 + lane / 16 * 8, piece lane / 8 % 2
  std::uint32_t by_word;   // row lane % 4, element lane / 4

  TESSERA_DEVICE TileLanes() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    by_rows = piece_offset<Element, kRowBytes>(lane % 16, lane / 16);
    by_eight = piece_offset<Element, kRowBytes>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    by_word = piece_offset<Element, kRowBytes>(lane % 4, lane / 16) + lane / 4 % 4 * 4;
  }

  // Of the lane's row of A in [row][depth].
  TESSERA_DEVICE std::uint32_t a_address(std::uint32_t s_tile, int row, int depth) const {
    return s_tile + row * kRowBytes + (by_rows ^ (depth / kPieceElements) << 4);
  }
  // A from [row][depth]; depth and row start at multiples of the fragment's.
  TESSERA_DEVICE Fragment a_rows(std::uint32_t s_tile, int row, int depth) const {
    Fragment f;
    Operands<Element>::load(f, a_address(s_tile, row, depth));
    return f;
  }
  // B from [column][depth].
  TESSERA_DEVICE Fragment b_rows(std::uint32_t s_tile, int column, int depth) const {
    Fragment f;
    Operands<Element>::load(f, s_tile + column * kRowBytes + (by_eight ^ (depth / kPieceElements) << 4));
    return f;
  }
  // A from [depth][row].
  TESSERA_DEVICE Fragment a_columns(std::uint32_t s_tile, int row, int depth) const {
    Fragment f;
    if constexpr (Operands<Element>::kWords) {
      load_words(f, s_tile, row, depth);
      const std::uint32_t second = f.words[1];
      f.words[1] = f.words[2];
      f.words[2] = second;
      Operands<Element>::prepare(f);
    } else {
      ptx::load_matrices_transposed(s_tile + depth * kRowBytes + (by_eight ^ (row / kPieceElements) << 4), f.words[0],
                                    f.words[1], f.words[2], f.words[3]);
    }
    return f;
  }
  // B from [depth][column].
  TESSERA_DEVICE Fragment b_columns(std::uint32_t s_tile, int column, int depth) const {
    Fragment f;
    if constexpr (Operands<Element>::kWords) {
      load_words(f, s_tile, column, depth);
      Operands<Element>::prepare(f);
    } else {
      ptx::load_matrices_transposed(s_tile + depth * kRowBytes + (by_rows ^ (column / kPieceElements) << 4), f.words[0],
                                    f.words[1], f.words[2], f.words[3]);
    }
    return f;
  }

 private:
  // Element lane / 4 of columns from `column` and from `column` + 8, each in rows lane % 4 and lane % 4 + 4.
  TESSERA_DEVICE void load_words(Fragment& f, std::uint32_t s_tile, int column, int depth) const {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const std::uint32_t s_word = s_tile + depth * kRowBytes + (by_word ^ (column / kPieceElements + 2 * block) << 4);
      f.words[2 * block] = ptx::load_word(s_word);
      f.words[2 * block + 1] = ptx::load_word((s_word ^ 16) + 4 * kRowBytes);
    }
  }
};

// r_sum += A B over kDepth: `a_at(row, depth)` and `b_at(column, depth)` load the fragments of 16 rows and of 16 columns. With
// `r_from`, r_sum is that plus A B.
template <class Element, int kDepth, int kM, int kElements, class LoadA, class LoadB>
TESSERA_DEVICE void multiply_tiles(float (&r_sum)[kM][kElements], const LoadA& a_at, const LoadB& b_at,
                                   const RowSums<kM>* r_from = nullptr) {
  using Ops = Operands<Element>;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += Ops::kDepth) {
    typename Ops::Fragment a[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      a[m] = a_at(16 * m, depth);
    }
#pragma unroll
    for (int n = 0; n < kElements / 4; n += 2) {
      const typename Ops::Fragment b = b_at(8 * n, depth);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if constexpr (!Ops::kWords) {
          if (r_from != nullptr && depth == 0) {
            Ops::template multiply_first<0>(&r_sum[m][4 * n], (*r_from)[m], a[m], b);
            Ops::template multiply_first<1>(&r_sum[m][4 * n + 4], (*r_from)[m], a[m], b);
            continue;
          }
        }
        Ops::template multiply<0>(&r_sum[m][4 * n], a[m], b);
        Ops::template multiply<1>(&r_sum[m][4 * n + 4], a[m], b);
      }
    }
  }
}

}  // namespace tessera::sm80
