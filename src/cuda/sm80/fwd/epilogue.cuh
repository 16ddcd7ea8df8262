// The end of a tile of queries: the sums of whole rows, the sinks, LSE, and O in the output's dtype.
#pragma once

#include "cuda/sm80/fwd/tile.cuh"
#include "cuda/tile/lazy_softmax.cuh"
#include "cuda/tile/shared_rows.cuh"

namespace tessera::sm80 {

template <ForwardConfig kConfig, class Program, class Element>
class Epilogue {
 public:
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kOutputs = kConfig.dim_v / 2;

  TESSERA_DEVICE Epilogue(const ForwardParams& params, const QueryTile& work, int warp)
      : params_(params), work_(work), warp_(warp) {}

  // `factor_log2` is what turns the maxima into base 2, `scale` multiplies O.
  TESSERA_DEVICE void write(const float (&r_output)[kRowBlocks][kOutputs], tile::LazySoftmax (&softmax)[kRowBlocks],
                            float factor_log2, float sink_log2, float scale) const {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      softmax[m].finish();
      const int first_row =
          work_.first_query + warp_ * kConfig.warp_rows() + 16 * m + static_cast<int>(threadIdx.x % 32) / 4;
      float factor[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        factor[r] =
            scale * finish_row(softmax[m].maximum[r], softmax[m].sum[r], factor_log2, sink_log2, first_row + 8 * r);
      }
      write_rows(r_output[m], factor, first_row);
    }
  }

 private:
  // What O has to be multiplied by. A row that sees nothing has the sum 0, and O = 0.
  TESSERA_DEVICE float finish_row(float maximum, float sum, float factor_log2, float sink_log2, int row) const {
    constexpr float kInfinity = __builtin_huge_valf();
    constexpr float kLn2 = 0.693147180559945309F;
    float top = maximum == -kInfinity ? -kInfinity : maximum * factor_log2;
    float shrink = 1.0F;
    if (sink_log2 > top) {
      shrink = ptx::exp2(top - sink_log2);
      top = sink_log2;
    }
    const float total = fmaf(sum, shrink, sink_log2 == -kInfinity ? 0.0F : ptx::exp2(sink_log2 - top));
    const bool empty = total == 0.0F;
    if (params_.lse != nullptr && work_.part == 0 && threadIdx.x % 4 == 0 && row < work_.sequence.queries) {
      params_.lse[work_.sequence.batch * params_.lse_strides.batch + work_.head * params_.lse_strides.head +
                  (std::int64_t{work_.sequence.query_row} + row) * params_.lse_strides.token] =
          empty ? -kInfinity : (top + log2f(total)) * kLn2;
    }
    return empty ? 0.0F : shrink * __frcp_rn(total);
  }

  TESSERA_DEVICE void write_rows(const float (&r_output)[kOutputs], const float (&factor)[2], int first_row) const {
    const std::int64_t at = work_.sequence.batch * params_.out_strides.batch + work_.head * params_.out_strides.head +
                            (std::int64_t{work_.sequence.query_row} + first_row) * params_.out_strides.token +
                            work_.part * kConfig.dim_v;
    const bool stored[2] = {first_row < work_.sequence.queries, first_row + 8 < work_.sequence.queries};
    const int dim = params_.dim_v - work_.part * kConfig.dim_v;
    if (Program::kFunction ? Program::kFloat32 : params_.out_is_float32 != 0) {
      write_elements(r_output, factor, static_cast<float*>(params_.out) + at, stored, dim);
      return;
    }
    if constexpr (tile::kElementBytes<Element> == 2) {
      std::uint16_t* const g_row = static_cast<std::uint16_t*>(params_.out) + at;
      if (params_.out_is_aligned != 0) {
        std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * params_.out_strides.token};
        tile::store_rows<Element>(r_output, factor, g_rows, stored, dim);
      } else {
        write_elements(r_output, factor, g_row, stored, dim);
      }
    }
  }

  // Pairs of float32 where O is aligned, else one by one.
  template <class Stored>
  TESSERA_DEVICE void write_elements(const float (&r_output)[kOutputs], const float (&factor)[2], Stored* g_row,
                                     const bool (&stored)[2], int dim) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!stored[r]) {
        continue;
      }
      Stored* const g_pairs = g_row + 8 * r * params_.out_strides.token + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < kOutputs / 4; ++i) {
        const int left = dim - 8 * i - static_cast<int>(threadIdx.x % 4) * 2;
        write_pair(g_pairs + 8 * i, r_output[4 * i + 2 * r] * factor[r], r_output[4 * i + 2 * r + 1] * factor[r], left);
      }
    }
  }
  TESSERA_DEVICE void write_pair(float* g_pair, float first, float second, int left) const {
    if (params_.out_is_aligned != 0) {
      if (left > 0) {
        *reinterpret_cast<float2*>(g_pair) = {first, second};
      }
      return;
    }
    if (left > 0) {
      g_pair[0] = first;
    }
    if (left > 1) {
      g_pair[1] = second;
    }
  }
  TESSERA_DEVICE static void write_pair(std::uint16_t* g_pair, float first, float second, int left) {
    const std::uint32_t both = ptx::pack<Element>(first, second);
    if (left > 0) {
      g_pair[0] = static_cast<std::uint16_t>(both);
    }
    if (left > 1) {
      g_pair[1] = static_cast<std::uint16_t>(both >> 16);
    }
  }

  const ForwardParams& params_;
  const QueryTile& work_;
  const int warp_;
};

}  // namespace tessera::sm80
