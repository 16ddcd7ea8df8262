// delta = rowsum(dO o O) - dLSE (FlashAttention-2, Algorithm 2, line 4) and LSE of rows of queries, by kLanes threads a row, and what
// is summed over them.
#pragma once

#include "cuda/common/row_location.cuh"
#include "cuda/common/row_statistics.h"
#include "cuda/ptx/registers.cuh"

namespace tessera {

// Of 16 bytes.
template <class Element>
TESSERA_DEVICE float dot(const uint4& a, const uint4& b, float sum) {
  const std::uint32_t x[4] = {a.x, a.y, a.z, a.w};
  const std::uint32_t y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = ptx::unpack<Element>(x[i]);
    const float2 v = ptx::unpack<Element>(y[i]);
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  return sum;
}

// What kernels that follow find at zero: numbers, and a lane's part of a row of dQ.
TESSERA_DEVICE void clear_number(const StatisticRows& params, std::int64_t index) {
  if (index < params.number_count) {
    params.numbers[index] = 0;
  }
}
template <int kLanes>
TESSERA_DEVICE void clear_sum(const StatisticRows& params, std::int64_t row_index, int lane) {
  if (params.dq_sum != nullptr) {
    float4* const g_sum = reinterpret_cast<float4*>(params.dq_sum + row_index * params.dq_columns);
    for (int i = lane; i < params.dq_columns / 4; i += kLanes) {
      g_sum[i] = float4{};
    }
  }
}

template <int kLanes>
TESSERA_DEVICE float sum_of_lanes(float sum) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(__activemask(), sum, distance);
  }
  return sum;
}

struct RowStatistics {
  float lse;  // infinite, so that weights are 0, where nothing is seen
  float delta;
};

// `dot` is rowsum(dO o O).
TESSERA_DEVICE RowStatistics row_statistics(const StatisticRows& params, const Row& row, float dot) {
  constexpr float kInfinity = __builtin_huge_valf();
  RowStatistics found{kInfinity, 0.0F};
  if (row.inside) {
    const float lse = params.lse[offset(params.lse_strides, row)];
    if (params.dlse != nullptr) {
      dot -= params.dlse[offset(params.dlse_strides, row)];
    }
    found.lse = lse == -kInfinity ? kInfinity : lse;
    found.delta = lse == -kInfinity ? 0.0F : dot;
  }
  return found;
}

TESSERA_DEVICE void store_statistics(const StatisticRows& params, std::int64_t row_index, const RowStatistics& row) {
  constexpr float kLog2e = 1.44269504088896341F;
  params.lse_log2[row_index] = row.lse * kLog2e;
  params.delta[row_index] = row.delta;
}

// One block a head, whose terms are added in one order.
template <int kThreads>
TESSERA_DEVICE void sum_sinks(const SinkRows& params) {
  constexpr float kLog2e = 1.44269504088896341F;
  __shared__ float s_sums[kThreads / 32];
  const int head = static_cast<int>(blockIdx.x);
  const float sink = kLog2e * params.sinks[head * params.sinks_stride];
  float sum = 0.0F;
  for (int line = 0; line < params.lines; ++line) {
    const std::int64_t first = (static_cast<std::int64_t>(line) * params.heads + head) * params.line_rows;
    for (int i = static_cast<int>(threadIdx.x); i < params.line_rows; i += kThreads) {
      sum = fmaf(-ptx::exp2(sink - params.lse_log2[first + i]), params.delta[first + i], sum);
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
  }
  if (threadIdx.x % 32 == 0) {
    s_sums[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0F;
    for (const float part : s_sums) {
      total += part;
    }
    params.dsinks[head * params.dsinks_stride] = total;
  }
}

}  // namespace tessera
