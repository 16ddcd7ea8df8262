// The two products of a warp with inputs of 16 bits: S = Q K^T and O += P V, fragments from swizzled rows in shared memory.
#pragma once

#include "cuda/sm80/fwd/config.h"
#include "cuda/tile/lazy_softmax.cuh"
#include "cuda/tile/matrix_address.cuh"
#include "cuda/tile/shared_rows.cuh"

namespace tessera::sm80 {

template <ForwardConfig kConfig, class Element>
class Products {
 public:
  using QueryRows = tile::SharedRows<Element, kConfig.dim_qk>;
  using KeyRows = QueryRows;
  using ValueRows = tile::SharedRows<Element, kConfig.dim_v>;
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.dim_v / 2;

  // Of the warp's own rows.
  TESSERA_DEVICE explicit Products(std::uint32_t s_queries, std::uint32_t /*s_scales*/, int /*warp*/)
      : lane_(static_cast<int>(threadIdx.x % 32)), queries_(s_queries, lane_ % 16, lane_ / 16) {}

  // Once the queries are in shared memory.
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
    std::uint32_t r_a[2][kRowBlocks][4];
    take_queries_of(r_a[0], 0);
    for_each_pair<kSteps, kConfig.tile_k / 16>(
        [&](std::uint32_t (&r_b)[4], int k, int n) {
          ptx::load_matrices(keys.at(16 * n, 2 * k), r_b[0], r_b[1], r_b[2], r_b[3]);
        },
        [&](const std::uint32_t (&r_b)[4], int k, int n) {
          if (n == 0 && k + 1 < kSteps) {
            take_queries_of(r_a[(k + 1) % 2], k + 1);
          }
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float* const d = r_scores[m] + 8 * n + 4 * half;
              if (k == 0) {
                ptx::mma_first<Element>(d, r_a[k % 2][m], r_b[2 * half], r_b[2 * half + 1]);
              } else {
                ptx::mma<Element>(d, r_a[k % 2][m], r_b[2 * half], r_b[2 * half + 1]);
              }
            }
          }
        });
  }

  // The accumulator of the scores, rounded, is the A operand for them.
  TESSERA_DEVICE void output(float (&r_output)[kRowBlocks][kOutputs], const float (&r_weights)[kRowBlocks][kScores],
                             std::uint32_t s_values, int /*slot*/) {
    const tile::MatrixAddress<ValueRows::kRowBytes> values(s_values, lane_ % 16, lane_ / 16);
    std::uint32_t r_a[kRowBlocks][kScores / 2];
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      tile::round_to<Element>(r_a[m], r_weights[m]);
    }
    for_each_pair<kConfig.tile_k / 16, kConfig.dim_v / 16>(
        [&](std::uint32_t (&r_b)[4], int k, int n) {
          ptx::load_matrices_transposed(values.at(16 * k, 2 * n), r_b[0], r_b[1], r_b[2], r_b[3]);
        },
        [&](const std::uint32_t (&r_b)[4], int k, int n) {
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            ptx::mma<Element>(r_output[m] + 8 * n, r_a[m] + 4 * k, r_b[0], r_b[1]);
            ptx::mma<Element>(r_output[m] + 8 * n + 4, r_a[m] + 4 * k, r_b[2], r_b[3]);
          }
        });
  }

 private:
  static constexpr int kSteps = kConfig.dim_qk / 16;

  // use(r_b, k, n) for step k along the depth and pair n of fragments of 8 columns, which load(r_b, k, n) has loaded before the
  // products of the pair in front of it were issued.
  template <int kDepths, int kPairs, class Load, class Use>
  TESSERA_DEVICE static void for_each_pair(const Load& load, const Use& use) {
    std::uint32_t r_b[2][4];
    load(r_b[0], 0, 0);
#pragma unroll
    for (int k = 0; k < kDepths; ++k) {
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        const int i = k * kPairs + n;
        if (i + 1 < kDepths * kPairs) {
          load(r_b[(i + 1) % 2], k + (n + 1) / kPairs, (n + 1) % kPairs);
        }
        use(r_b[i % 2], k, n);
      }
    }
  }

  TESSERA_DEVICE void take_queries_of(std::uint32_t (&r_a)[kRowBlocks][4], int k) const {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      if constexpr (kConfig.keeps_queries()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          r_a[m][i] = r_queries_[k][m][i];
        }
      } else {
        load_queries(r_a[m], k, m);
      }
    }
  }
  TESSERA_DEVICE void load_queries(std::uint32_t (&r_a)[4], int k, int m) const {
    ptx::load_matrices(queries_.at(16 * m, 2 * k), r_a[0], r_a[1], r_a[2], r_a[3]);
  }

  const int lane_;
  const tile::MatrixAddress<QueryRows::kRowBytes> queries_;
  std::uint32_t r_queries_[kConfig.keeps_queries() ? kSteps : 1][kRowBlocks][4];
};

}  // namespace tessera::sm80
