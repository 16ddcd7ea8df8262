// The two products of a warp with float32 inputs, as pairs of float16 (tile/float_pairs.cuh): x y = high high + (high low + low high).
// What is small is summed apart, and so is each tile's share of O: the tensor cores truncate sums, and an error of half a unit in
// every step would add up over a long sequence.
#pragma once

#include "cuda/sm80/fwd/products_16.cuh"
#include "cuda/tile/float_pairs.cuh"

namespace tessera::sm80 {

template <ForwardConfig kConfig, class Element>
  requires(ptx::kSame<Element, ptx::float32>)
class Products<kConfig, Element> {
 public:
  using QueryRows = tile::SharedRows<Element, kConfig.dim_qk>;
  using KeyRows = QueryRows;
  using ValueRows = tile::SharedRows<Element, kConfig.dim_v>;
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.dim_v / 2;
  static constexpr int kGroups = kConfig.tile_k / 8;  // of keys, with a scale each

  // `s_queries` are the warp's own rows, `s_scales` what config.h has for scales.
  TESSERA_DEVICE Products(std::uint32_t s_queries, std::uint32_t s_scales, int warp)
      : lane_(static_cast<int>(threadIdx.x % 32)),
        queries_(s_queries, lane_ % 16, lane_ / 16 * 2),
        s_scales_(s_scales),
        s_query_scales_(s_scales + 4 * 2 * kRowBlocks * warp) {}

  TESSERA_DEVICE std::uint32_t query_scales() const { return s_scales_; }
  TESSERA_DEVICE std::uint32_t key_scales(int slot) const {
    return s_scales_ + kConfig.tile_q() / 2 + slot * kConfig.tile_k;
  }
  TESSERA_DEVICE std::uint32_t value_scales(int slot) const { return key_scales(slot) + kConfig.tile_k / 2; }

  TESSERA_DEVICE void take_queries() const {}

  TESSERA_DEVICE void scores(float (&r_scores)[kRowBlocks][kScores], std::uint32_t s_keys, int slot) const {
    if constexpr (kSteps <= kBlockSteps) {
      scores_of_block(r_scores, s_keys, 0);
    } else {
      for_each_score([&](int m, int i) { r_scores[m][i] = 0.0F; });
#pragma unroll 1
      for (int first = 0; first < kSteps; first += kBlockSteps) {
        float r_block[kRowBlocks][kScores];
        scores_of_block(r_block, s_keys, first);
        for_each_score([&](int m, int i) { r_scores[m][i] += r_block[m][i]; });
      }
    }
    float scales[kGroups];
    load_scales(scales, key_scales(slot));
    float query_scales[2 * kRowBlocks];
    load_scales(query_scales, s_query_scales_);
    for_each_score([&](int m, int i) { r_scores[m][i] *= query_scales[2 * m + i / 2 % 2] * scales[i / 4]; });
  }

  // The accumulator of the scores, in pairs, is the A operand. Weights take the scales of their keys, relative to the largest.
  TESSERA_DEVICE void output(float (&r_output)[kRowBlocks][kOutputs], const float (&r_weights)[kRowBlocks][kScores],
                             std::uint32_t s_values, int slot) const {
    constexpr float kWeightScale = 64.0F;  // weights go to 2^8, see LazySoftmax
    float scales[kGroups];
    load_scales(scales, value_scales(slot));
    float top = scales[0];
#pragma unroll
    for (int i = 1; i < kGroups; ++i) {
      top = fmaxf(top, scales[i]);
    }
    const float to_top = kWeightScale * __int_as_float((254 << 23) - __float_as_int(top));  // 64 / top
    std::uint32_t r_high[kRowBlocks][kScores / 2];
    std::uint32_t r_low[kRowBlocks][kScores / 2];
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kScores; i += 2) {
        const float scale = scales[i / 4] * to_top;
        tile::split_pair(r_weights[m][i] * scale, r_weights[m][i + 1] * scale, r_high[m][i / 2], r_low[m][i / 2]);
      }
    }
    const float from_top = top / kWeightScale;
    const tile::MatrixAddress<ValueRows::kRowBytes> values(s_values, lane_ % 16, lane_ / 16 * 2);
#pragma unroll
    for (int n = 0; n < kConfig.dim_v / 16; ++n) {
      float r_large[2][kRowBlocks][4];
      float r_small[2][kRowBlocks][4];
#pragma unroll
      for (int k = 0; k < kConfig.tile_k / 16; ++k) {
        std::uint32_t r_b[4], r_b_low[4];
        ptx::load_matrices_transposed(values.at(16 * k, 4 * n), r_b[0], r_b[1], r_b[2], r_b[3]);
        ptx::load_matrices_transposed(values.at(16 * k, 4 * n + 1), r_b_low[0], r_b_low[1], r_b_low[2], r_b_low[3]);
        for_each_block([&](int half, int m) { add(r_small[half][m], r_high[m] + 4 * k, r_b_low + 2 * half, k == 0); });
        for_each_block([&](int half, int m) { add(r_large[half][m], r_high[m] + 4 * k, r_b + 2 * half, k == 0); });
        for_each_block([&](int half, int m) { add(r_small[half][m], r_low[m] + 4 * k, r_b + 2 * half, false); });
      }
      for_each_block([&](int half, int m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& sum = r_output[m][8 * n + 4 * half + e];
          sum = fmaf(tile::join_pairs(r_large[half][m][e], r_small[half][m][e]), from_top, sum);
        }
      });
    }
  }

 private:
  static constexpr int kSteps = kConfig.dim_qk / 16;
  // Sums begin anew after so many steps, so that what is truncated does not grow with the head dim.
  static constexpr int kBlockSteps = 8;

  template <class Body>
  TESSERA_DEVICE static void for_each_score(const Body& body) {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        body(m, i);
      }
    }
  }
  // Two blocks of 8 columns; products of one sum stand apart, since each waits for the one before it.
  template <class Body>
  TESSERA_DEVICE static void for_each_block(const Body& body) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        body(half, m);
      }
    }
  }
  TESSERA_DEVICE static void add(float* d, const std::uint32_t* r_a, const std::uint32_t* r_b, bool first) {
    if (first) {
      ptx::mma_first<ptx::float16>(d, r_a, r_b[0], r_b[1]);
    } else {
      ptx::mma<ptx::float16>(d, r_a, r_b[0], r_b[1]);
    }
  }
  template <int kCount>
  TESSERA_DEVICE static void load_scales(float (&scales)[kCount], std::uint32_t s_scales) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      scales[i] = ptx::load_float(s_scales + 4 * i);
    }
  }

  // Of the columns from step `first` on, but for the scales.
  TESSERA_DEVICE void scores_of_block(float (&r_scores)[kRowBlocks][kScores], std::uint32_t s_keys, int first) const {
    constexpr int kCount = kSteps < kBlockSteps ? kSteps : kBlockSteps;
    constexpr int kStepBytes = 4 * 16;
    const tile::MatrixAddress<QueryRows::kRowBytes> keys(s_keys + first * kStepBytes, lane_ % 8 + lane_ / 16 * 8,
                                                         lane_ / 8 % 2 * 2);
    float r_small[kRowBlocks][kScores];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      std::uint32_t r_a[kRowBlocks][4], r_a_low[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        load(r_a[m], queries_.at(16 * m, 4 * k) + first * kStepBytes);
        load(r_a_low[m], queries_.at(16 * m, 4 * k + 1) + first * kStepBytes);
      }
#pragma unroll
      for (int n = 0; n < kConfig.tile_k / 16; ++n) {
        std::uint32_t r_b[4], r_b_low[4];
        load(r_b, keys.at(16 * n, 4 * k));
        load(r_b_low, keys.at(16 * n, 4 * k + 1));
        const auto at = [&](float (&r_sums)[kRowBlocks][kScores], int half, int m) {
          return r_sums[m] + 8 * n + 4 * half;
        };
        for_each_block([&](int half, int m) { add(at(r_small, half, m), r_a[m], r_b_low + 2 * half, k == 0); });
        for_each_block([&](int half, int m) { add(at(r_scores, half, m), r_a[m], r_b + 2 * half, k == 0); });
        for_each_block([&](int half, int m) { add(at(r_small, half, m), r_a_low[m], r_b + 2 * half, false); });
      }
    }
    for_each_score([&](int m, int i) { r_scores[m][i] = tile::join_pairs(r_scores[m][i], r_small[m][i]); });
  }
  TESSERA_DEVICE static void load(std::uint32_t (&r)[4], std::uint32_t s_address) {
    ptx::load_matrices(s_address, r[0], r[1], r[2], r[3]);
  }

  const int lane_;
  const tile::MatrixAddress<QueryRows::kRowBytes> queries_;
  const std::uint32_t s_scales_, s_query_scales_;
};

}  // namespace tessera::sm80
