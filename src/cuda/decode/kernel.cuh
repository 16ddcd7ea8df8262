// Attention of few queries over many keys (Flash-Decoding): every block reads an equal share of all keys once.
#pragma once

#include "cuda/decode/rows.cuh"
#include "cuda/ptx/grid.cuh"

namespace tessera::decode {

// The rows of a unit from the sums of the slices: to O and LSE where this block has seen all keys of the unit, else to its
// partial results, which merge_rows picks up.
template <DecodeConfig kConfig, class Element>
TESSERA_DEVICE void write_unit(const DecodeParams& params, const Share& share, const UnitCursor<kConfig.rows()>& unit,
                               const float* s_rows, const RowStatistics* s_statistics) {
  const int rows = rows_of<kConfig.rows()>(params, unit.line);
  const int pieces = params.dim_v / 4;
  const bool whole = unit.begin >= share.begin && unit.end <= share.end;
  const int slot = 2 * static_cast<int>(blockIdx.x) + (unit.begin > share.begin ? 1 : 0);
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += kConfig.threads()) {
    const int row = i / pieces;
    const int column = 4 * (i % pieces);
    RowMerge merge;
#pragma unroll
    for (int slice = 0; slice < kConfig.slices; ++slice) {
      merge.maximum = fmaxf(merge.maximum, s_statistics[slice * kConfig.rows() + row].maximum);
    }
    float4 value{};
#pragma unroll
    for (int slice = 0; slice < kConfig.slices; ++slice) {
      const RowStatistics part = s_statistics[slice * kConfig.rows() + row];
      const float weight = merge.weight(part);
      merge.sum = fmaf(part.sum, weight, merge.sum);
      add_scaled(
          value,
          *reinterpret_cast<const float4*>(s_rows + (slice * kConfig.rows() + row) * kConfig.sum_stride() + column),
          weight);
    }
    if (whole) {
      const RowPlace place = place_of(params, unit.line, unit.head, row);
      const FinishedRow finished = finish_row(params, merge, place.head);
      store_columns<Element>(params, unit.line, place, column, scaled(value, finished.factor));
      if (column == 0) {
        store_lse(params, unit.line, place, finished.lse);
      }
    } else {
      const std::int64_t index = static_cast<std::int64_t>(slot) * kConfig.rows() + row;
      *reinterpret_cast<float4*>(params.partial_out + index * params.dim_v + column) = value;
      if (column == 0) {
        params.partial_rows[index] = {merge.maximum, merge.sum};
      }
    }
  }
}

template <DecodeConfig kConfig, class Element>
TESSERA_DEVICE void decode(const DecodeParams& params) {
  extern __shared__ __align__(128) std::uint8_t s_raw[];
  float* const s_sums = reinterpret_cast<float*>(s_raw + kConfig.ring_bytes());
  std::uint8_t* const s_queries = s_raw + kConfig.ring_bytes() + kConfig.sum_bytes();
  auto* const s_statistics = reinterpret_cast<RowStatistics*>(s_queries + kConfig.query_bytes());
  const Share share = share_of<kConfig.rows(), kConfig.slices, kConfig.threads()>(params, static_cast<int>(blockIdx.x));
  ptx::let_next_grid_start();
  if (share.begin >= share.end) {
    return;
  }
  constexpr int kLanes = 32 * kConfig.row_warps;
  const int slice = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / kLanes, 0);
  const int row_warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) % kLanes / 32, 0);
  const std::uint32_t s_ring = ptx::shared_address(s_raw) + slice * kConfig.stages * kConfig.stage_bytes();
  Loader<kConfig> loader(params, share, s_ring, static_cast<int>(threadIdx.x) % kLanes, share.begin + slice);
#pragma unroll 1  // short problems wait for instructions more than for anything else
  for (int stage = 0; stage < kConfig.stages - 1; ++stage) {
    loader.load_next();
  }
  RowTile<kConfig, Element> tile;
  int step = share.begin + slice;
  int slot = 0;
  for (UnitCursor<kConfig.rows()> unit(params, share);;) {
    load_queries<kConfig>(params, unit, s_queries);
    __syncthreads();  // also behind the reads of the rows of the unit before
    tile.begin(params, unit, 16 * row_warp, ptx::shared_address(s_queries));
    for (const int end = min(unit.end, share.end); step < end; step += kConfig.slices) {
      ptx::copy_async_wait<kConfig.stages - 2>();
      if constexpr (kConfig.row_warps == 1) {
        __syncwarp();
      } else {
        ptx::named_barrier_sync(1 + slice, kLanes);
      }
      loader.load_next();  // over the step that every warp of the slice has left behind
      tile.add(params, unit.line, s_ring + slot * kConfig.stage_bytes(),
               (unit.line.first_step + step - unit.begin) * kStepKeys);
      slot = slot + 1 == kConfig.stages ? 0 : slot + 1;
    }
    tile.finish();
    const int first_row = slice * kConfig.rows() + 16 * row_warp;
    tile.store(s_sums + first_row * kConfig.sum_stride(), s_statistics + first_row);
    __syncthreads();
    write_unit<kConfig, Element>(params, share, unit, s_sums, s_statistics);
    if (unit.end >= share.end) {
      break;
    }
    unit.advance(params);
  }
}

// Units that several blocks share: merged by the blocks of this kernel whose namesakes began inside of them, row by row, and
// always in the order of the keys.
template <DecodeConfig kConfig, class Element>
TESSERA_DEVICE void merge_rows(const DecodeParams& params) {
  constexpr int kWarps = kMergeThreads / 32;
  constexpr int kColumns = 128;  // of a warp
  __shared__ float4 s_sums[kWarps][32];
  const int block = static_cast<int>(blockIdx.x) + 1;
  const Share share = share_of<kConfig.rows(), kConfig.slices, kMergeThreads>(params, block);
  ptx::wait_for_last_grid();
  if (share.begin >= share.end) {
    return;
  }
  const UnitCursor<kConfig.rows()> unit(params, share);
  if (unit.begin == share.begin) {
    return;
  }
  const int first = share.owner_of(unit.begin);
  const int parts = share.owner_of(unit.end - 1) - first + 1;
  const int first_slot = 2 * first + (share.begin_of(first) < unit.begin ? 1 : 0);
  const auto index_of = [&](int part, int row) {
    const std::int64_t slot = part == 0 ? first_slot : 2 * (first + part);
    return slot * kConfig.rows() + row;
  };
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunks = tile::ceil_div(params.dim_v, kColumns);
  for (int item = block - first - 1; item < rows_of<kConfig.rows()>(params, unit.line) * chunks; item += parts - 1) {
    const int row = item / chunks;
    const int column = item % chunks * kColumns + 4 * lane;
    RowMerge merge;
#pragma unroll 4
    for (int part = lane; part < parts; part += 32) {
      merge.maximum = fmaxf(merge.maximum, params.partial_rows[index_of(part, row)].maximum);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      merge.maximum = fmaxf(merge.maximum, __shfl_xor_sync(0xFFFFFFFFU, merge.maximum, distance));
    }
#pragma unroll 4
    for (int part = lane; part < parts; part += 32) {
      const RowStatistics statistics = params.partial_rows[index_of(part, row)];
      merge.sum = fmaf(statistics.sum, merge.weight(statistics), merge.sum);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      merge.sum += __shfl_xor_sync(0xFFFFFFFFU, merge.sum, distance);
    }
    float4 value{};
#pragma unroll 8
    for (int part = warp; part < parts; part += kWarps) {
      const std::int64_t index = index_of(part, row);
      if (column < params.dim_v) {
        add_scaled(value, *reinterpret_cast<const float4*>(params.partial_out + index * params.dim_v + column),
                   merge.weight(params.partial_rows[index]));
      }
    }
    __syncthreads();
    s_sums[warp][lane] = value;
    __syncthreads();
    if (warp == 0) {
      for (int other = 1; other < kWarps; ++other) {
        add_scaled(value, s_sums[other][lane], 1.0F);
      }
      const RowPlace place = place_of(params, unit.line, unit.head, row);
      const FinishedRow finished = finish_row(params, merge, place.head);
      if (column < params.dim_v) {
        store_columns<Element>(params, unit.line, place, column, scaled(value, finished.factor));
      }
      if (column == 0) {
        store_lse(params, unit.line, place, finished.lse);
      }
    }
  }
}

}  // namespace tessera::decode

#define TESSERA_DECODE_INSTANCE(name, head_dim, row_warps, slices, stages, element)                 \
  extern "C" __global__ void __launch_bounds__(32 * row_warps * slices, 1)                          \
      name(const __grid_constant__ tessera::decode::DecodeParams params) {                          \
    tessera::decode::decode<tessera::decode::DecodeConfig{head_dim, row_warps, slices, stages},     \
                            tessera::ptx::element>(params);                                         \
  }                                                                                                 \
  extern "C" __global__ void __launch_bounds__(tessera::decode::kMergeThreads)                      \
      name##_merge(const __grid_constant__ tessera::decode::DecodeParams params) {                  \
    tessera::decode::merge_rows<tessera::decode::DecodeConfig{head_dim, row_warps, slices, stages}, \
                                tessera::ptx::element>(params);                                     \
  }
