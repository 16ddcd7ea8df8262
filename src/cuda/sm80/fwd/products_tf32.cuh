// The two products of a warp with float32 inputs that are rounded to tf32, beside whose error that of the sums is nothing.
#pragma once

#include "cuda/sm80/fwd/products_16.cuh"

namespace tessera::sm80 {

template <ForwardConfig kConfig, class Element>
  requires(ptx::kSame<Element, ptx::tf32>)
class Products<kConfig, Element> {
 public:
  using QueryRows = tile::SharedRows<Element, kConfig.dim_qk>;
  using KeyRows = QueryRows;
  using ValueRows = tile::SharedRows<Element, kConfig.dim_v, tile::Swizzle::by_pair>;
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.dim_v / 2;

  TESSERA_DEVICE explicit Products(std::uint32_t s_queries, std::uint32_t /*s_scales*/, int /*warp*/)
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

  TESSERA_DEVICE void scores(float (&r_scores)[kRowBlocks][kScores], std::uint32_t s_keys, int /*slot*/) {
    const tile::MatrixAddress<KeyRows::kRowBytes> keys(s_keys, lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2);
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[m][i] = 0.0F;
      }
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      std::uint32_t r_a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        if constexpr (!kConfig.keeps_queries()) {
          load_queries(r_a[m], k, m);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r_a[m][i] = ptx::round_to_tf32(kConfig.keeps_queries() ? r_queries_[k][m][i] : r_a[m][i]);
        }
      }
#pragma unroll
      for (int n = 0; n < kConfig.tile_k; n += 16) {
        std::uint32_t r_b[2][2];
        ptx::load_matrices(keys.at(n, 2 * k), r_b[0][0], r_b[0][1], r_b[1][0], r_b[1][1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          r_b[half][0] = ptx::round_to_tf32(r_b[half][0]);
          r_b[half][1] = ptx::round_to_tf32(r_b[half][1]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            ptx::mma_tf32(r_scores[m] + n / 2 + 4 * half, r_a[m], r_b[half][0], r_b[half][1]);
          }
        }
      }
    }
  }

  // Depth l % 4 of a product stands for key l % 4 * 2 of 8, depth l % 4 + 4 for the key after it: so the accumulator of the
  // scores is the A operand without a shuffle.
  TESSERA_DEVICE void output(float (&r_output)[kRowBlocks][kOutputs], const float (&r_weights)[kRowBlocks][kScores],
                             std::uint32_t s_values, int /*slot*/) {
    constexpr int kBlocks = kRowBlocks == 1 ? 2 : 1;  // of 8 columns at once, as registers allow
    const std::uint32_t base =
        s_values + lane_ % 4 * 2 * ValueRows::kRowBytes + ((lane_ / 16) ^ (lane_ % 4 * 2)) * 16 + lane_ / 4 % 4 * 4;
#pragma unroll
    for (int n = 0; n < kConfig.dim_v / 8; n += kBlocks) {
#pragma unroll
      for (int k = 0; k < kConfig.tile_k / 8; ++k) {
        std::uint32_t r_b[kBlocks][2];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const std::uint32_t column = (base ^ (n + block) % 4 * 32) + (n + block) / 4 * 128;
          r_b[block][0] = ptx::round_to_tf32(ptx::load_word(column + 8 * k * ValueRows::kRowBytes));
          r_b[block][1] = ptx::round_to_tf32(ptx::load_word(column + (8 * k + 1) * ValueRows::kRowBytes));
        }
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            std::uint32_t r_a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              r_a[i] = ptx::round_to_tf32(__float_as_uint(r_weights[m][4 * k + i % 2 * 2 + i / 2]));
            }
            ptx::mma_tf32(r_output[m] + 4 * (n + block), r_a, r_b[block][0], r_b[block][1]);
          }
        }
      }
    }
  }

 private:
  static constexpr int kSteps = kConfig.dim_qk / 8;

  TESSERA_DEVICE void load_queries(std::uint32_t (&r_a)[4], int k, int m) const {
    ptx::load_matrices(queries_.at(16 * m, 2 * k), r_a[0], r_a[1], r_a[2], r_a[3]);
  }

  const int lane_;
  const tile::MatrixAddress<QueryRows::kRowBytes> queries_;
  std::uint32_t r_queries_[kConfig.keeps_queries() ? kSteps : 1][kRowBlocks][4];
};

}  // namespace tessera::sm80
