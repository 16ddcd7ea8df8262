// Before and after the backward kernel. Both are bound by memory: they read and write 16 bytes a thread.
#include "cuda/common/backward_rows.h"
#include "cuda/common/row_location.cuh"
#include "cuda/common/row_statistics.cuh"
#include "cuda/ptx/grid.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera {

namespace {

TESSERA_DEVICE float clamp_finite(float x) {
  constexpr float kMost = 3e38F;
  return x > kMost ? kMost : x < -kMost ? -kMost : x;  // NaN stays
}

TESSERA_DEVICE uint4 statistic_parts(float lse, float delta) {
  constexpr int kParts = StatisticParts::kParts;
  float part[2 * kParts];
#pragma unroll
  for (int n = 0; n < kParts; ++n) {
    part[n] = ptx::unpack<ptx::bfloat16>(ptx::pack<ptx::bfloat16>(lse, 0.0F)).x;
    part[kParts + n] = ptx::unpack<ptx::bfloat16>(ptx::pack<ptx::bfloat16>(delta, 0.0F)).x;
    lse -= part[n];
    delta -= part[kParts + n];
  }
  return {ptx::pack<ptx::bfloat16>(part[0], part[1]), ptx::pack<ptx::bfloat16>(part[2], part[3]),
          ptx::pack<ptx::bfloat16>(part[4], part[5]), 0};
}

template <int kLanes>
TESSERA_DEVICE void prepare_rows(const BackwardRows& params) {
  ptx::let_next_grid_start();
  const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  clear_number(params, index);
  const std::int64_t row_index = index / kLanes;
  if (row_index >= params.rows) {
    return;
  }
  const int lane = static_cast<int>(index % kLanes);
  clear_sum<kLanes>(params, row_index, lane);
  const Row row = locate(params.batch, row_index, params.line_rows);
  float sum = 0.0F;
  const int column = 8 * lane;
  if (row.inside && column < params.dim_v) {
    const auto load = [&](const void* data, const Strides& strides) {
      return *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(data) + offset(strides, row) + column);
    };
    const uint4 out = load(params.out, params.out_strides);
    const uint4 dout = load(params.dout, params.dout_strides);
    sum = params.bfloat16 != 0 ? dot<ptx::bfloat16>(out, dout, 0.0F) : dot<ptx::float16>(out, dout, 0.0F);
  }
  sum = sum_of_lanes<kLanes>(sum);
  if (lane != 0) {
    return;
  }
  const RowStatistics found = row_statistics(params, row, sum);
  if (params.lse_log2 != nullptr) {
    store_statistics(params, row_index, found);
  }
  if (params.parts != nullptr) {
    reinterpret_cast<uint4*>(params.parts)[row_index] =
        statistic_parts(clamp_finite(found.lse * params.lse_factor), clamp_finite(-found.delta));
  }
}

// The queries of the sequence that owns a row of statistics.
TESSERA_DEVICE tile::Sequence owner_of_row(const Batch& batch, std::int64_t row, int line_rows) {
  if (batch.sequences == nullptr) {
    return tile::sequence_of(batch, 0);
  }
  return tile::sequence_of(batch, locate_sequence(batch, static_cast<int>(row % line_rows)));
}

TESSERA_DEVICE bool sees_keys(const BackwardConvert& params, const tile::Sequence& sequence, int first_query) {
  const tile::Bounds bounds = tile::bounds_of(params.band, sequence);
  const auto visits = [&]<MaskKind kMask>() {
    return tile::key_tiles<kMask>(bounds, sequence, first_query, params.tile_q, params.tile_k).size() > 0;
  };
  switch (static_cast<MaskKind>(params.mask)) {
    case MaskKind::dense:
      return visits.template operator()<MaskKind::dense>();
    case MaskKind::causal:
      return visits.template operator()<MaskKind::causal>();
    default:
      return visits.template operator()<MaskKind::window>();
  }
}

// The same of the tile of queries that begins with a row of statistics, under a listed mask.
TESSERA_DEVICE bool listed_sees_keys(const BackwardConvert& params, std::int64_t first_row, const Row& row) {
  const bool alike = params.batch.sequences == nullptr;
  const int sequence =
      alike ? row.batch : locate_sequence(params.batch, static_cast<int>(first_row % params.line_rows));
  const int line = listed_row(params.listed, params.listed.row_tiles, sequence, row.head, row.query / params.tile_q);
  return params.listed.rows.begin[line + 1] > params.listed.rows.begin[line];
}

// dQ of a tile of queries: blocks of 64 x 64 from the order of registers to rows, times the scale, each by a warpgroup. Blocks
// are side by side or, where a tile has 128 queries, below each other. A tile that no keys were added to is zero, whatever is
// in memory.
template <class Element>
TESSERA_DEVICE void convert_tile(const BackwardConvert& params, std::int64_t first_row) {
  constexpr int kBlock = 64 * 64;
  const Row row = locate(params.batch, first_row, params.line_rows);
  const tile::Sequence sequence = owner_of_row(params.batch, first_row, params.line_rows);
  const bool written = static_cast<MaskKind>(params.mask) == MaskKind::listed ? listed_sees_keys(params, first_row, row)
                                                                              : sees_keys(params, sequence, row.query);
  const float factor[2] = {params.scale, params.scale};
  for (int block = static_cast<int>(threadIdx.x) / 128; block < params.tile_q * params.dq_columns / kBlock;
       block += 2) {
    const float4* const g_block =
        reinterpret_cast<const float4*>(params.dq_sum + first_row * params.dq_columns + block * kBlock) +
        threadIdx.x % 128;
    float r_values[32];
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      const float4 value = g_block[128 * x];
      r_values[4 * x] = written ? value.x : 0.0F;
      r_values[4 * x + 1] = written ? value.y : 0.0F;
      r_values[4 * x + 2] = written ? value.z : 0.0F;
      r_values[4 * x + 3] = written ? value.w : 0.0F;
    }
    const bool below = params.tile_q == 128;
    const int query = tile::fragment_row() + (below ? 64 * block : 0);
    const int first_column = below ? 0 : 64 * block;
    std::uint16_t* const g_row = static_cast<std::uint16_t*>(params.dq) + offset(params.dq_strides, row) +
                                 query * params.dq_strides.token + first_column;
    std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * params.dq_strides.token};
    const bool stored[2] = {row.query + query < sequence.queries, row.query + query + 8 < sequence.queries};
    tile::store_rows<Element>(r_values, factor, g_rows, stored, params.dim_qk - first_column);
  }
}

}  // namespace

}  // namespace tessera

#define TESSERA_BACKWARD_ROWS(lanes)                                                \
  extern "C" __global__ void __launch_bounds__(256)                                 \
      backward_rows_##lanes(const __grid_constant__ tessera::BackwardRows params) { \
    tessera::prepare_rows<lanes>(params);                                           \
  }
TESSERA_BACKWARD_ROWS(8)
TESSERA_BACKWARD_ROWS(16)
TESSERA_BACKWARD_ROWS(32)

extern "C" __global__ void __launch_bounds__(256) backward_sinks(const __grid_constant__ tessera::SinkRows params) {
  tessera::sum_sinks<256>(params);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_convert(const __grid_constant__ tessera::BackwardConvert params) {
  // From the end: what the backward kernel added last is still in the L2 cache.
  const std::int64_t first_row = static_cast<std::int64_t>(gridDim.x - 1 - blockIdx.x) * params.tile_q;
  if (params.bfloat16 != 0) {
    tessera::convert_tile<tessera::ptx::bfloat16>(params, first_row);
  } else {
    tessera::convert_tile<tessera::ptx::float16>(params, first_row);
  }
}
