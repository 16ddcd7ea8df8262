// Parameters of the kernels around the backward kernel, see backward_rows.cu.
#pragma once

#include <cstdint>

#include "cuda/tile/listed.h"
#include "cuda/tile/statistic_parts.h"
#include "cuda/tile/work.h"

namespace tessera {

struct BackwardRows {
  const void *out, *dout;
  const float *lse, *dlse;  // dlse may be null
  Strides out_strides, dout_strides, lse_strides, dlse_strides;
  float *lse_log2, *delta;  // null where parts are enough
  StatisticParts* parts;    // or null
  float lse_factor;         // of LSE in parts: -1 / the scale of scores
  float* dq_sum;            // zeroed, or null
  std::int32_t* numbers;    // zeroed: the counter and the turns
  std::int64_t number_count;
  Batch batch;
  std::int64_t rows;  // of statistics: (batch, head) pairs or heads, times line_rows
  std::int32_t line_rows;
  std::int32_t dim_v;
  std::int32_t dq_columns;
  std::int32_t bfloat16;  // else float16
};

// The gradient of each query head's sink: -sum exp(sink - LSE) delta over its rows of statistics.
struct BackwardSinks {
  const float *lse_log2, *delta;
  const float* sinks;
  float* dsinks;
  std::int64_t sinks_stride, dsinks_stride;
  Batch batch;
  std::int32_t lines;  // of one head
  std::int32_t line_rows;
};

struct BackwardConvert {
  const float* dq_sum;
  void* dq;
  Strides dq_strides;
  Batch batch;
  Band band;
  std::int32_t mask;  // MaskKind
  std::int32_t line_rows;
  std::int32_t tile_q, tile_k;
  std::int32_t dq_columns;
  std::int32_t dim_qk;
  float scale;
  std::int32_t bfloat16;
  Listed listed;  // of listed masks: its rows' beginnings alone
};

}  // namespace tessera
