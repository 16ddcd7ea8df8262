// The two products of a warp with inputs of 32 bits, on tensor cores that multiply tf32. float32: x = high + low, each of 11 bits,
// and x y = high high + (high low + low high), with an error of 2^-21. What is small is summed apart, and so is each tile's share
// of O: the tensor cores truncate sums, and an error of half a unit in every step would add up over a long sequence. tf32: one
// product of rounded inputs, beside whose error that of the sums is nothing.
#pragma once

#include "cuda/sm80/fwd/products_16.cuh"

namespace tessera::sm80 {

// What the instructions leave of x: they ignore the bits below the 11.
TESSERA_DEVICE std::uint32_t low_part(std::uint32_t x) {
  return __float_as_uint(__uint_as_float(x) - __uint_as_float(x & 0xFFFFE000U));
}

// Of a sum whose operands hold an infinity, the small part is not a number (infinity minus itself, or times 0), and the large one
// not finite. What is not a number itself may be finite in the large part, where `kHalf` can carry into its sign.
TESSERA_DEVICE float join(float large, float small) {
  return fabsf(large) < __builtin_huge_valf() ? large + small : large;
}

template <ForwardConfig kConfig, class Element>
  requires(tile::kElementBytes<Element> == 4)
class Products<kConfig, Element> {
 public:
  using QueryRows = tile::SharedRows<Element, kConfig.dim_qk>;
  using KeyRows = QueryRows;
  using ValueRows = tile::SharedRows<Element, kConfig.dim_v, tile::Swizzle::by_pair>;
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.dim_v / 2;

  TESSERA_DEVICE explicit Products(std::uint32_t s_queries)
      : lane_(static_cast<int>(threadIdx.x % 32)), queries_(s_queries, lane_ % 16, lane_ / 16) {}

  TESSERA_DEVICE void take_queries() {
    if constexpr (kConfig.keeps_queries()) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          load_queries(r_queries_[k][m], k, m);
        }
      }
    }
  }

  TESSERA_DEVICE void scores(float (&r_scores)[kRowBlocks][kScores], std::uint32_t s_keys) {
    if constexpr (kSteps <= kBlockSteps) {
      scores_of_block(r_scores, s_keys, 0);
    } else {
      clear(r_scores);
#pragma unroll 1
      for (int first = 0; first < kSteps; first += kBlockSteps) {
        float r_block[kRowBlocks][kScores];
        scores_of_block(r_block, s_keys, first);
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
          for (int i = 0; i < kScores; ++i) {
            r_scores[m][i] += r_block[m][i];
          }
        }
      }
    }
  }

  // Depth l % 4 of a product stands for key l % 4 * 2 of 8, depth l % 4 + 4 for the key after it: so the accumulator of the
  // scores is the A operand without a shuffle.
  TESSERA_DEVICE void output(float (&r_output)[kRowBlocks][kOutputs], const float (&r_weights)[kRowBlocks][kScores],
                             std::uint32_t s_values) {
    constexpr int kDepths = kConfig.tile_k / 8;
    constexpr int kBlocks = kRowBlocks == 1 ? 2 : 1;  // of 8 columns at once, as registers allow
    const std::uint32_t base =
        s_values + lane_ % 4 * 2 * ValueRows::kRowBytes + ((lane_ / 16) ^ (lane_ % 4 * 2)) * 16 + lane_ / 4 % 4 * 4;
#pragma unroll
    for (int n = 0; n < kConfig.dim_v / 8; n += kBlocks) {
      float r_large[kBlocks][kRowBlocks][4] = {};
      float r_small[kBlocks][kRowBlocks][4] = {};
#pragma unroll
      for (int k = 0; k < kDepths; ++k) {
        std::uint32_t r_b[kBlocks][2];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const std::uint32_t column = (base ^ (n + block) % 4 * 32) + (n + block) / 4 * 128;
          r_b[block][0] = operand(ptx::load_word(column + 8 * k * ValueRows::kRowBytes));
          r_b[block][1] = operand(ptx::load_word(column + (8 * k + 1) * ValueRows::kRowBytes));
        }
        std::uint32_t r_a[kRowBlocks][4];
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            r_a[m][i] = operand(__float_as_uint(r_weights[m][4 * k + i % 2 * 2 + i / 2]));
          }
        }
        float* r_sums[kBlocks][kRowBlocks];
        float* r_small_sums[kBlocks][kRowBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            r_sums[block][m] = kSplit ? r_large[block][m] : r_output[m] + 4 * (n + block);
            r_small_sums[block][m] = r_small[block][m];
          }
        }
        multiply(r_sums, r_small_sums, r_a, r_b);
      }
      if constexpr (kSplit) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              r_output[m][4 * (n + block) + e] += join(r_large[block][m][e], r_small[block][m][e]);
            }
          }
        }
      }
    }
  }

 private:
  static constexpr bool kSplit = ptx::kSame<Element, ptx::float32>;
  static constexpr int kSteps = kConfig.dim_qk / 8;
  // Sums begin anew after so many steps, so that what is truncated does not grow with the head dim.
  static constexpr int kBlockSteps = kSplit ? 16 : kSteps;

  // As the instructions take it: they ignore the bits below the 11, which is right for the parts of float32 alone.
  TESSERA_DEVICE static std::uint32_t operand(std::uint32_t x) { return kSplit ? x : ptx::round_to_tf32(x); }

  // An operand of the scores becomes what the instructions take, and what is left of float32 is returned. That is rounded to nearest,
  // as the backward pass does it: its weights are 2^(S - LSE), off by what its S differs from that in LSE.
  TESSERA_DEVICE static std::uint32_t split(std::uint32_t& x) {
    if constexpr (kSplit) {
      constexpr std::uint32_t kHalf = 0x1000;
      const std::uint32_t whole = x;
      x += kHalf;
      return __float_as_uint(__uint_as_float(whole) - __uint_as_float(x & 0xFFFFE000U));
    } else {
      x = operand(x);
      return 0;
    }
  }

  TESSERA_DEVICE static void clear(float (&r_scores)[kRowBlocks][kScores]) {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[m][i] = 0.0F;
      }
    }
  }

  // Of the columns from step `first` on.
  TESSERA_DEVICE void scores_of_block(float (&r_scores)[kRowBlocks][kScores], std::uint32_t s_keys, int first) {
    constexpr int kCount = kSteps < kBlockSteps ? kSteps : kBlockSteps;
    constexpr int kBlockBytes = 4 * 8;  // of a step
    const tile::MatrixAddress<KeyRows::kRowBytes> keys(s_keys + first * kBlockBytes, lane_ % 8 + lane_ / 16 * 8,
                                                       lane_ / 8 % 2);
    float r_small[kRowBlocks][kScores];
    clear(r_scores);
    clear(r_small);
    // Unrolled as a whole, those of head dim 64 spill 108 bytes.
    constexpr int kUnrolled = kSplit && kCount == 8 ? 4 : kCount;
#pragma unroll kUnrolled
    for (int k = 0; k < kCount; ++k) {
      std::uint32_t r_a[kRowBlocks][4];
      std::uint32_t r_a_low[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        if constexpr (!kConfig.keeps_queries()) {
          load_queries(r_a[m], k, m, first * kBlockBytes);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r_a[m][i] = kConfig.keeps_queries() ? r_queries_[k][m][i] : r_a[m][i];
          r_a_low[m][i] = split(r_a[m][i]);
        }
      }
#pragma unroll
      for (int n = 0; n < kConfig.tile_k; n += 16) {
        std::uint32_t r_b[2][2];
        std::uint32_t r_b_low[2][2];
        ptx::load_matrices(keys.at(n, 2 * k), r_b[0][0], r_b[0][1], r_b[1][0], r_b[1][1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r_b_low[i / 2][i % 2] = split(r_b[i / 2][i % 2]);
        }
        float* r_sums[2][kRowBlocks];
        float* r_small_sums[2][kRowBlocks];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            r_sums[half][m] = r_scores[m] + n / 2 + 4 * half;
            r_small_sums[half][m] = r_small[m] + n / 2 + 4 * half;
          }
        }
        multiply(r_sums, r_small_sums, r_a, r_a_low, r_b, r_b_low);
      }
    }
    if constexpr (kSplit) {
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
          r_scores[m][i] = join(r_scores[m][i], r_small[m][i]);
        }
      }
    }
  }

  // Row blocks times blocks of 8 columns; products of one sum stand apart, since each waits for the one before it.
  template <int kBlocks>
  TESSERA_DEVICE static void multiply(float* const (&r_sums)[kBlocks][kRowBlocks],
                                      float* const (&r_small)[kBlocks][kRowBlocks],
                                      const std::uint32_t (&r_a)[kRowBlocks][4],
                                      const std::uint32_t (&r_b)[kBlocks][2]) {
    if constexpr (kSplit) {
      std::uint32_t r_b_low[kBlocks][2];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        r_b_low[block][0] = low_part(r_b[block][0]);
        r_b_low[block][1] = low_part(r_b[block][1]);
      }
      add_products(r_small, r_a, r_b_low);
    }
    add_products(r_sums, r_a, r_b);
    if constexpr (kSplit) {
      std::uint32_t r_a_low[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r_a_low[m][i] = low_part(r_a[m][i]);
        }
      }
      add_products(r_small, r_a_low, r_b);
    }
  }
  template <int kBlocks>
  TESSERA_DEVICE static void multiply(float* const (&r_sums)[kBlocks][kRowBlocks],
                                      float* const (&r_small)[kBlocks][kRowBlocks],
                                      const std::uint32_t (&r_a)[kRowBlocks][4],
                                      const std::uint32_t (&r_a_low)[kRowBlocks][4],
                                      const std::uint32_t (&r_b)[kBlocks][2],
                                      const std::uint32_t (&r_b_low)[kBlocks][2]) {
    if constexpr (kSplit) {
      add_products(r_small, r_a, r_b_low);
    }
    add_products(r_sums, r_a, r_b);
    if constexpr (kSplit) {
      add_products(r_small, r_a_low, r_b);
    }
  }
  template <int kBlocks>
  TESSERA_DEVICE static void add_products(float* const (&r_sums)[kBlocks][kRowBlocks],
                                          const std::uint32_t (&r_a)[kRowBlocks][4],
                                          const std::uint32_t (&r_b)[kBlocks][2]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        ptx::mma_tf32(r_sums[block][m], r_a[m], r_b[block][0], r_b[block][1]);
      }
    }
  }

  TESSERA_DEVICE void load_queries(std::uint32_t (&r_a)[4], int k, int m, int first_bytes = 0) const {
    ptx::load_matrices(queries_.at(16 * m, 2 * k) + first_bytes, r_a[0], r_a[1], r_a[2], r_a[3]);
  }

  const int lane_;
  const tile::MatrixAddress<QueryRows::kRowBytes> queries_;
  std::uint32_t r_queries_[kConfig.keeps_queries() ? kSteps : 1][kRowBlocks][4];
};

}  // namespace tessera::sm80
