// Parameters of the kernels around the backward kernels of the sm80 family, see gradient_rows.cu.
#pragma once

#include <cstdint>

#include "cuda/common/row_statistics.h"
#include "cuda/tile/work.h"

namespace tessera {

enum class GradientElement : std::int32_t { float32, bfloat16, float16 };

struct GradientRows : StatisticRows {
  GradientElement element;  // of O and dO
  std::int32_t aligned;     // rows of both start at multiples of 16 bytes
};

// dQ of tiles from sums in the order of registers, see tile/dq_fragments.cuh.
struct GradientConvert {
  const float* dq_sum;
  void* dq;
  Strides dq_strides;
  Batch batch;
  std::int32_t line_rows;
  std::int32_t tile_q, columns, warps;
  std::int32_t dim_qk;
  float scale;
  GradientElement element;
  std::int32_t aligned;       // pairs of elements are aligned
  std::int32_t whole_pieces;  // rows are made of aligned pieces of 16 bytes
  Band band;
  std::int32_t tile_k;
  std::int32_t stored_first;  // 1: the sum of a tile that no keys were added to was never written
};

}  // namespace tessera
