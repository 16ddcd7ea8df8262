// Gradients from registers to global memory.
#pragma once

#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/bwd/visits.cuh"
#include "cuda/sm80/bwd/warp.cuh"

namespace tessera::sm80 {

// Whether an output is float32 beside inputs of 16 bits: known in a kernel with a function.
template <class Program>
TESSERA_DEVICE bool is_float32(std::int32_t at_run_time) {
  return Program::kFunction ? Program::kFloat32 : at_run_time != 0;
}

template <class Element>
TESSERA_DEVICE void store_element(void* g_target, bool is_float32, std::int64_t offset, float value) {
  if constexpr (tile::kElementBytes<Element> == 4) {
    static_cast<float*>(g_target)[offset] = value;
  } else if (is_float32) {
    static_cast<float*>(g_target)[offset] = value;
  } else {
    static_cast<std::uint16_t*>(g_target)[offset] = static_cast<std::uint16_t>(ptx::pack<Element>(value, 0.0F));
  }
}

template <class Element>
TESSERA_DEVICE void store_pair(const BackwardOutput& output, bool is_float32, std::int64_t offset, float low,
                               float high, int count) {
  if (count >= 2 && output.aligned != 0) {
    if (is_float32) {
      *reinterpret_cast<float2*>(static_cast<float*>(output.data) + offset) = float2{low, high};
    } else if constexpr (tile::kElementBytes<Element> == 2) {
      *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(output.data) + offset) =
          ptx::pack<Element>(low, high);
    }
    return;
  }
  if (count > 0) {
    store_element<Element>(output.data, is_float32, offset, low);
  }
  if (count > 1) {
    store_element<Element>(output.data, is_float32, offset + 1, high);
  }
}

// Rows of fragments as pieces of 16 bytes: a quad holds 8 columns of a row in every fragment, and after a transpose each of its
// lanes has 8 columns of four. All lanes of a warp take part.
template <class Element, int kN>
TESSERA_DEVICE void store_pieces(void* g_target, std::int64_t offset, const float (&r_values)[4 * kN], int r,
                                 float factor, bool stored, int column, int dim) {
  static_assert(kN % 4 == 0);
#pragma unroll
  for (int n = 0; n < kN; n += 4) {
    std::uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      words[k] = ptx::pack<Element>(r_values[4 * (n + k) + 2 * r] * factor, r_values[4 * (n + k) + 2 * r + 1] * factor);
    }
    ptx::transpose_quad(words[0], words[1], words[2], words[3]);
    const int at = column + 8 * n + static_cast<int>(threadIdx.x % 4) * 8;
    if (stored && at < dim) {
      *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(g_target) + offset + at) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// Fragments of 16 x 8, kM below each other and kN side by side, and where they go: their values times `factor` to the rows from
// `first` on; rows from `used` to `stored` are zeros, and those behind are left out. Columns count from `column` and end at `dim`.
template <class Element, class Program>
struct RowsToStore {
  const BackwardOutput& output;
  float factor;
  int batch, sequence_row, head;
  int first, used, stored;
  int column, dim;

  TESSERA_DEVICE bool wide() const {
    return tile::kElementBytes<Element> == 4 || is_float32<Program>(output.is_float32);
  }
  TESSERA_DEVICE std::int64_t offset(int row) const {
    return batch * output.strides.batch + head * output.strides.head +
           (static_cast<std::int64_t>(sequence_row) + row) * output.strides.token;
  }
  // The two values of a lane in row `r` of fragment (m, n).
  TESSERA_DEVICE void store(int lane, int m, int n, int r, float low, float high) const {
    const int row = first + 16 * m + 8 * r + lane / 4;
    const int at = column + lane % 4 * 2 + 8 * n;
    if (row < stored) {
      store_pair<Element>(output, wide(), offset(row) + at, row < used ? low * factor : 0.0F,
                          row < used ? high * factor : 0.0F, dim - at);
    }
  }
};

// Every fragment has code of its own.
template <class Element, class Program, int kM, int kN>
TESSERA_DEVICE void store_pairs(const RowsToStore<Element, Program>& rows, const float (&r_values)[kM][4 * kN],
                                int lane) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = rows.first + 16 * m + 8 * r + lane / 4;
      const std::int64_t offset = rows.offset(row);
      const bool used_row = row < rows.used;
      if (row < rows.stored) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const int at = rows.column + lane % 4 * 2 + 8 * n;
          store_pair<Element>(rows.output, rows.wide(), offset + at,
                              used_row ? r_values[m][4 * n + 2 * r] * rows.factor : 0.0F,
                              used_row ? r_values[m][4 * n + 2 * r + 1] * rows.factor : 0.0F, rows.dim - at);
        }
      }
    }
  }
}

// Registers move up, so that the code of a fragment, with its branches, stands once.
template <class Element, class Program, int kM, int kN>
TESSERA_DEVICE void store_pairs_compactly(const RowsToStore<Element, Program>& rows,
                                          const float (&r_values)[kM][4 * kN], int lane) {
  constexpr int kValues = 4 * kM * kN;
  float r_moved[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    r_moved[i] = r_values[i / (4 * kN)][i % (4 * kN)];
  }
#pragma unroll 1
  for (int i = 0; i < kM * kN; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.store(lane, i / kN, i % kN, r, r_moved[2 * r], r_moved[2 * r + 1]);
    }
#pragma unroll
    for (int k = 0; k + 4 < kValues; ++k) {
      r_moved[k] = r_moved[k + 4];
    }
  }
}

// 16-bit rows are stored in pairs seldom: unrolled, that was a third of the time to compile the kernel.
template <class Element, class Program, int kM, int kN>
TESSERA_DEVICE void store_rows(const RowsToStore<Element, Program>& rows, const float (&r_values)[kM][4 * kN]) {
  const int lane = static_cast<int>(ptx::fresh(threadIdx.x)) % 32;  // not kept in a register since the kernel began
  if constexpr (tile::kElementBytes<Element> == 4) {
    store_pairs<Element, Program, kM, kN>(rows, r_values, lane);
  } else {
    if constexpr (kN % 4 == 0) {
      if (rows.output.whole_pieces != 0 && !rows.wide() && rows.used == rows.stored) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int row = rows.first + 16 * m + 8 * r + lane / 4;
            store_pieces<Element, kN>(rows.output.data, rows.offset(row), r_values[m], r, rows.factor, row < rows.used,
                                      rows.column, rows.dim);
          }
        }
        return;
      }
    }
    store_pairs_compactly<Element, Program, kM, kN>(rows, r_values, lane);
  }
}

// A tile of dbias, summed along the extents that broadcast it. `end` is where the cursor of the block came to.
template <BackwardConfig kConfig, class Element>
TESSERA_DEVICE void store_bias(const BackwardBias& bias, const TilesOfBias<kConfig>& end,
                               const typename BackwardWarp<kConfig, Element>::Scores& r_bias,
                               const BackwardWarp<kConfig, Element>& warp, float* s_sum) {
  using Warp = BackwardWarp<kConfig, Element>;
  __syncthreads();  // the tiles that lay there are read
#pragma unroll
  for (int m = 0; m < Warp::kM; ++m) {
#pragma unroll
    for (int i = 0; i < 4 * Warp::kScoreN; ++i) {
      const int row = warp.query_row() + 16 * m + warp.row + i / 2 % 2 * 8;
      s_sum[row * kConfig.tile_k + warp.score_column() + warp.column + i / 4 * 8 + i % 2] = r_bias[m][i];
    }
  }
  __syncthreads();
  const bool sums_queries = bias.extents[2] == 1;
  const bool sums_keys = bias.extents[3] == 1;
  const int first_query = sums_queries ? 0 : end.begin(2) * kConfig.tile_q;
  const int first_key = sums_keys ? 0 : end.begin(3) * kConfig.tile_k;
  const int rows = sums_queries ? 1 : min(kConfig.tile_q, bias.extents[2] - first_query);
  const int columns = sums_keys ? 1 : min(kConfig.tile_k, bias.extents[3] - first_key);
  const std::int64_t offset = end.begin(0) * bias.strides[0] + end.begin(1) * bias.strides[1];
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += kConfig.threads()) {
    const int row = i / columns;
    const int column = i % columns;
    float sum = 0.0F;
    for (int r = row; r < (sums_queries ? kConfig.tile_q : row + 1); ++r) {
      float sum_of_row = 0.0F;
      for (int c = column; c < (sums_keys ? kConfig.tile_k : column + 1); ++c) {
        sum_of_row += s_sum[r * kConfig.tile_k + c];
      }
      sum += sum_of_row;
    }
    store_element<Element>(bias.data, bias.is_float32 != 0,
                           offset + (first_query + row) * bias.strides[2] + (first_key + column) * bias.strides[3],
                           sum);
  }
}

}  // namespace tessera::sm80
