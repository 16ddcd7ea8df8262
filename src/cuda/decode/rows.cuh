// What becomes of the rows of a unit: merged, finished and written.
#pragma once

#include "cuda/decode/scores.cuh"

namespace tessera::decode {

// Merges (O, statistics) pairs in a fixed order: add each, with its weight.
struct RowMerge {
  float maximum = kHidden;
  float sum = 0.0F;

  TESSERA_DEVICE float offset() const { return maximum == kHidden ? 0.0F : maximum; }
  TESSERA_DEVICE float weight(const RowStatistics& part) const { return ptx::exp2(part.maximum - offset()); }
};

// The factor of O and the LSE of a row whose keys are all in `row`; the sink is one more, with a value of zero.
struct FinishedRow {
  float factor;
  float lse;
};
TESSERA_DEVICE FinishedRow finish_row(const DecodeParams& params, RowMerge row, int head) {
  float factor = 1.0F;
  if (RuntimeProgram::has(params.score, ScoreFeature::sinks)) {
    const float sink = params.score.sinks[head * params.score.sinks_stride] * kLog2e;
    const RowStatistics before{row.maximum, row.sum};
    row.maximum = fmaxf(before.maximum, sink);
    factor = row.weight(before);
    row.sum = before.sum * factor + row.weight({sink, 1.0F});
  }
  if (row.sum == 0.0F) {
    return {0.0F, kHidden};
  }
  return {factor / row.sum, (row.offset() + log2f(row.sum)) * kLn2};
}

// Four columns of a row of O, already finished.
template <class Element>
TESSERA_DEVICE void store_columns(const DecodeParams& params, const Line& line, const RowPlace& place, int column,
                                  const float4& value) {
  const std::int64_t offset = line.sequence * params.out_strides.batch + place.query * params.out_strides.token +
                              place.head * params.out_strides.head + column;
  if (params.out_is_float32 != 0) {
    *reinterpret_cast<float4*>(static_cast<float*>(params.out) + offset) = value;
  } else {
    *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(params.out) + offset) =
        make_uint2(ptx::pack<Element>(value.x, value.y), ptx::pack<Element>(value.z, value.w));
  }
}

TESSERA_DEVICE void store_lse(const DecodeParams& params, const Line& line, const RowPlace& place, float lse) {
  if (params.lse != nullptr) {
    params.lse[line.sequence * params.lse_strides.batch + place.query * params.lse_strides.token +
               place.head * params.lse_strides.head] = lse;
  }
}

TESSERA_DEVICE float4 scaled(const float4& value, float factor) {
  return make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
}
TESSERA_DEVICE void add_scaled(float4& sum, const float4& value, float factor) {
  sum.x = fmaf(value.x, factor, sum.x);
  sum.y = fmaf(value.y, factor, sum.y);
  sum.z = fmaf(value.z, factor, sum.z);
  sum.w = fmaf(value.w, factor, sum.w);
}

}  // namespace tessera::decode
