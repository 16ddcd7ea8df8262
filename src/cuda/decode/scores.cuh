// One warp's share of attention: 16 rows against one step of keys after another.
#pragma once

#include "cuda/decode/loader.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/program.cuh"

namespace tessera::decode {

using tile::kLog2e;
inline constexpr float kLn2 = 0.693147180559945309F;
inline constexpr float kHidden = -__builtin_huge_valf();

// Q of a unit to shared memory, by the whole block.
template <DecodeConfig kConfig>
TESSERA_DEVICE void load_queries(const DecodeParams& params, const UnitCursor<kConfig.rows()>& unit,
                                 std::uint8_t* s_queries) {
  constexpr int kPieces = kConfig.head_dim / 8;
  const int rows = rows_of<kConfig.rows()>(params, unit.line);
  for (int i = static_cast<int>(threadIdx.x); i < kConfig.rows() * kPieces; i += kConfig.threads()) {
    const int row = i / kPieces;
    const int column = i % kPieces * 8;
    uint4 value{};
    if (row < rows && column < params.dim_qk) {
      const RowPlace place = place_of(params, unit.line, unit.head, row);
      value = *reinterpret_cast<const uint4*>(
          static_cast<const std::uint16_t*>(params.q) + unit.line.sequence * params.q_strides.batch +
          place.query * params.q_strides.token + place.head * params.q_strides.head + column);
    }
    *reinterpret_cast<uint4*>(s_queries + piece_offset<kConfig.head_dim>(row, i % kPieces)) = value;
  }
}

// 16 rows of a warp; a thread has parts of two, lane / 4 and 8 more.
template <DecodeConfig kConfig, class Element>
class RowTile {
 public:
  static constexpr int kDim = kConfig.head_dim;

  // Of the unit under the cursor. Rows that do not exist compute what nobody reads.
  TESSERA_DEVICE void begin(const DecodeParams& params, const UnitCursor<kConfig.rows()>& unit, int first_row,
                            std::uint32_t s_queries) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int rows = rows_of<kConfig.rows()>(params, unit.line);
    s_queries_ = s_queries + first_row * kDim * 2;
    if constexpr (kQueriesInRegisters) {
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        load_query(r_queries_[i], i);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + lane / 4 + 8 * r;
      const RowPlace place = place_of(params, unit.line, unit.head, min(row, rows - 1));
      query_[r] = place.query;
      slope_[r] = 0.0F;
      if (RuntimeProgram::has(params.score, ScoreFeature::alibi)) {
        slope_[r] = params.score.alibi[unit.line.sequence * params.score.alibi_batch_stride +
                                       place.head * params.score.alibi_head_stride];
      }
      maximum_[r] = kHidden;
      sum_[r] = 0.0F;
    }
    const int last_row = unit.line.first_row + rows - 1;
    highest_first_ = last_row / params.group_size + unit.line.bounds.lower;
    lowest_last_ = min(unit.line.first_row / params.group_size + unit.line.bounds.upper, unit.line.keys - 1);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        r_output_[i][e] = 0.0F;
      }
    }
  }

  // O <- rescale O + P V for the step of keys in shared memory.
  TESSERA_DEVICE void add(const DecodeParams& params, const Line& line, std::uint32_t s_stage, int first_key) {
    float r_scores[2][4];
    multiply_keys(r_scores, s_stage);
    modify(r_scores, params, line, first_key);
    hide(r_scores, line, first_key);
    std::uint32_t r_weights[4];
    update(r_scores, r_weights);
    multiply_values(r_weights, s_stage + kConfig.stage_bytes() / 2);
  }

  // The sums of whole rows.
  TESSERA_DEVICE void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(0xFFFFFFFFU, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(0xFFFFFFFFU, sum_[r], 2);
    }
  }

  // The tile to rows of kConfig.sum_stride() floats, and its statistics.
  TESSERA_DEVICE void store(float* s_rows, RowStatistics* s_statistics) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if (lane % 4 == 0) {
        s_statistics[row] = {maximum_[r], sum_[r]};
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(s_rows + row * kConfig.sum_stride() + 8 * i + lane % 4 * 2) =
            make_float2(r_output_[i][2 * r], r_output_[i][2 * r + 1]);
      }
    }
  }

 private:
  // Those of head dim 256 would not fit beside O.
  static constexpr bool kQueriesInRegisters = kDim <= 128;

  TESSERA_DEVICE void load_query(std::uint32_t (&r_query)[4], int i) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    ptx::load_matrices(s_queries_ + piece_offset<kDim>(lane % 16, 2 * i + lane / 16), r_query[0], r_query[1],
                       r_query[2], r_query[3]);
  }

  // S = Q K^T, in two chains of products for each half of the keys.
  TESSERA_DEVICE void multiply_keys(float (&r_scores)[2][4], std::uint32_t s_keys) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane / 16 * 8 + lane % 8;
    float r_sums[2][2][4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      std::uint32_t r_again[4];
      std::uint32_t r_keys[4];
      if constexpr (!kQueriesInRegisters) {
        load_query(r_again, i);
      }
      const std::uint32_t* const r_queries = kQueriesInRegisters ? r_queries_[i] : r_again;
      ptx::load_matrices(s_keys + piece_offset<kDim>(row, 2 * i + lane / 8 % 2), r_keys[0], r_keys[1], r_keys[2],
                         r_keys[3]);
      ptx::mma<Element>(r_sums[i % 2][0], r_queries, r_keys[0], r_keys[1]);
      ptx::mma<Element>(r_sums[i % 2][1], r_queries, r_keys[2], r_keys[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        r_scores[half][e] = r_sums[0][half][e] + r_sums[1][half][e];
      }
    }
  }

  // To powers of two. The branches are the same for all threads, and memory takes longer than all that is behind them.
  TESSERA_DEVICE void modify(float (&r_scores)[2][4], const DecodeParams& params, const Line& line,
                             int first_key) const {
    const ScoreParams& score = params.score;
    const bool softcap = RuntimeProgram::has(score, ScoreFeature::softcap);
    const bool alibi = RuntimeProgram::has(score, ScoreFeature::alibi);
    const float scale = softcap || alibi ? score.scale : score.scale * kLog2e;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        r_scores[half][e] *= scale;
      }
    }
    if (!softcap && !alibi) {
      return;
    }
    const int column = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
    const float inverse = __fdividef(1.0F, score.softcap);
    const int diagonal = score.diagonal + (score.bottom_right != 0 ? line.keys - params.queries : 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = r_scores[half][e];
        x = softcap ? score.softcap * tile::tanh_of<Element>(x * inverse) : x;
        x -= slope_[e / 2] * fabsf(static_cast<float>(query_[e / 2] + diagonal - (column + 8 * half + e % 2)));
        x *= kLog2e;
      }
    }
  }

  TESSERA_DEVICE void hide(float (&r_scores)[2][4], const Line& line, int first_key) const {
    if (first_key >= highest_first_ && first_key + kStepKeys - 1 <= lowest_last_) {
      return;
    }
    const int column = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = column + 8 * half + e % 2;
        if (key < query_[e / 2] + line.bounds.lower || key > query_[e / 2] + line.bounds.upper || key >= line.keys) {
          r_scores[half][e] = kHidden;
        }
      }
    }
  }

  // Online softmax (Milakov and Gimelshein 2018). O is rescaled only in steps that raise a maximum, which become rare.
  TESSERA_DEVICE void update(const float (&r_scores)[2][4], std::uint32_t (&r_weights)[4]) {
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] =
          fmaxf(fmaxf(r_scores[0][2 * r], r_scores[0][2 * r + 1]), fmaxf(r_scores[1][2 * r], r_scores[1][2 * r + 1]));
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFU, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFU, top[r], 2));
    }
    if (__any_sync(0xFFFFFFFFU, top[0] > maximum_[0] || top[1] > maximum_[1])) {
      float rescale[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float highest = fmaxf(maximum_[r], top[r]);
        rescale[r] = ptx::exp2(maximum_[r] - (highest == kHidden ? 0.0F : highest));
        maximum_[r] = highest;
        sum_[r] *= rescale[r];
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          r_output_[i][e] *= rescale[e / 2];
        }
      }
    }
    float r_exponentials[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float offset = maximum_[e / 2] == kHidden ? 0.0F : maximum_[e / 2];
        r_exponentials[half][e] = ptx::exp2(r_scores[half][e] - offset);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += (r_exponentials[0][2 * r] + r_exponentials[0][2 * r + 1]) +
                 (r_exponentials[1][2 * r] + r_exponentials[1][2 * r + 1]);
      r_weights[r] = ptx::pack<Element>(r_exponentials[0][2 * r], r_exponentials[0][2 * r + 1]);
      r_weights[2 + r] = ptx::pack<Element>(r_exponentials[1][2 * r], r_exponentials[1][2 * r + 1]);
    }
  }

  TESSERA_DEVICE void multiply_values(const std::uint32_t (&r_weights)[4], std::uint32_t s_values) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane % 16;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      std::uint32_t r_values[4];
      ptx::load_matrices_transposed(s_values + piece_offset<kDim>(row, 2 * i + lane / 16), r_values[0], r_values[1],
                                    r_values[2], r_values[3]);
      ptx::mma<Element>(r_output_[2 * i], r_weights, r_values[0], r_values[1]);
      ptx::mma<Element>(r_output_[2 * i + 1], r_weights, r_values[2], r_values[3]);
    }
  }

  float r_output_[kDim / 8][4];
  float maximum_[2], sum_[2];  // of the rows, and of this thread's weights alone
  int query_[2];
  float slope_[2];
  int highest_first_, lowest_last_;  // keys between them are seen by every row
  std::uint32_t s_queries_;
  std::uint32_t r_queries_[kQueriesInRegisters ? kDim / 16 : 1][4];
};

}  // namespace tessera::decode
