// What the kernels before a backward pass have in common, see row_statistics.cuh.
#pragma once

#include <cstdint>

#include "cuda/tile/work.h"

namespace tessera {

struct StatisticRows {
  const void *out, *dout;
  const float *lse, *dlse;  // dlse may be null
  Strides out_strides, dout_strides, lse_strides, dlse_strides;
  float *lse_log2, *delta;
  float* dq_sum;          // zeroed, or null
  std::int32_t* numbers;  // zeroed, or null: counters and turns
  std::int64_t number_count;
  Batch batch;
  std::int64_t rows;  // of statistics: (batch, head) pairs or heads, times line_rows
  std::int32_t line_rows;
  std::int32_t dim_v;
  std::int32_t dq_columns;
};

// The gradient of each query head's sink: -sum exp(sink - LSE) delta over its rows of statistics.
struct SinkRows {
  const float *lse_log2, *delta;
  const float* sinks;
  float* dsinks;
  std::int64_t sinks_stride, dsinks_stride;
  std::int32_t line_rows;
  std::int32_t lines, heads;  // of a head; a head's lines are `heads` lines apart
};

}  // namespace tessera
