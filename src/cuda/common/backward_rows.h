// Parameters of the kernels around the backward kernel, see backward_rows.cu.
#pragma once

#include <cstdint>

#include "cuda/common/row_statistics.h"
#include "cuda/tile/listed.h"
#include "cuda/tile/statistic_parts.h"
#include "cuda/tile/work.h"

namespace tessera {

// lse_log2 and delta are null where parts are enough.
struct BackwardRows : StatisticRows {
  StatisticParts* parts;  // or null
  float lse_factor;       // of LSE in parts: -1 / the scale of scores
  std::int32_t bfloat16;  // else float16
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
