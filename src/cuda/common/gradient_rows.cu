// Before and after the backward kernels of the sm80 family: any dtype, any strides. All are bound by memory.
#include "cuda/common/gradient_rows.h"
#include "cuda/common/row_location.cuh"
#include "cuda/common/row_statistics.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/tile/dq_fragments.cuh"

namespace tessera {

namespace {

constexpr int kLanes = 8;  // of a row

template <GradientElement kElement>
TESSERA_DEVICE float element_at(const void* data, std::int64_t offset) {
  if constexpr (kElement == GradientElement::float32) {
    return static_cast<const float*>(data)[offset];
  } else if constexpr (kElement == GradientElement::bfloat16) {
    return ptx::unpack<ptx::bfloat16>(static_cast<const std::uint16_t*>(data)[offset]).x;
  } else {
    return ptx::unpack<ptx::float16>(static_cast<const std::uint16_t*>(data)[offset]).x;
  }
}

template <GradientElement kElement>
TESSERA_DEVICE float dot_of_piece(const uint4& a, const uint4& b, float sum) {
  if constexpr (kElement == GradientElement::float32) {
    const std::uint32_t x[4] = {a.x, a.y, a.z, a.w};
    const std::uint32_t y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(__uint_as_float(x[i]), __uint_as_float(y[i]), sum);
    }
    return sum;
  } else if constexpr (kElement == GradientElement::bfloat16) {
    return dot<ptx::bfloat16>(a, b, sum);
  } else {
    return dot<ptx::float16>(a, b, sum);
  }
}

// A lane's part of the dot product of two rows.
template <GradientElement kElement>
TESSERA_DEVICE float partial_dot(const GradientRows& params, std::int64_t out, std::int64_t dout, int lane) {
  constexpr int kPiece = kElement == GradientElement::float32 ? 4 : 8;
  float sum = 0.0F;
  if (params.aligned == 0 || params.dim_v % kPiece != 0) {
    for (int column = lane; column < params.dim_v; column += kLanes) {
      sum = fmaf(element_at<kElement>(params.out, out + column), element_at<kElement>(params.dout, dout + column), sum);
    }
    return sum;
  }
  constexpr int kBytes = 16 / kPiece;
  for (int column = lane * kPiece; column < params.dim_v; column += kLanes * kPiece) {
    const uint4 x =
        *reinterpret_cast<const uint4*>(static_cast<const std::uint8_t*>(params.out) + (out + column) * kBytes);
    const uint4 y =
        *reinterpret_cast<const uint4*>(static_cast<const std::uint8_t*>(params.dout) + (dout + column) * kBytes);
    sum = dot_of_piece<kElement>(x, y, sum);
  }
  return sum;
}

TESSERA_DEVICE float partial_dot(const GradientRows& params, const Row& row, int lane) {
  const std::int64_t out = offset(params.out_strides, row);
  const std::int64_t dout = offset(params.dout_strides, row);
  switch (params.element) {
    case GradientElement::float32:
      return partial_dot<GradientElement::float32>(params, out, dout, lane);
    case GradientElement::bfloat16:
      return partial_dot<GradientElement::bfloat16>(params, out, dout, lane);
    default:
      return partial_dot<GradientElement::float16>(params, out, dout, lane);
  }
}

TESSERA_DEVICE void prepare_rows(const GradientRows& params) {
  const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  clear_number(params, index);
  const std::int64_t row_index = index / kLanes;
  if (row_index >= params.rows) {
    return;
  }
  const int lane = static_cast<int>(index % kLanes);
  clear_sum<kLanes>(params, row_index, lane);
  const Row row = locate(params.batch, row_index, params.line_rows);
  const float sum = sum_of_lanes<kLanes>(row.inside ? partial_dot(params, row, lane) : 0.0F);
  if (lane == 0) {
    store_statistics(params, row_index, row_statistics(params, row, sum));
  }
}

template <GradientElement kElement>
TESSERA_DEVICE void store_pair(void* g_target, std::int64_t offset, float low, float high, int count, bool aligned) {
  if constexpr (kElement == GradientElement::float32) {
    float* const g_pair = static_cast<float*>(g_target) + offset;
    if (aligned && count > 1) {
      *reinterpret_cast<float2*>(g_pair) = float2{low, high};
      return;
    }
    if (count > 0) {
      g_pair[0] = low;
    }
    if (count > 1) {
      g_pair[1] = high;
    }
  } else {
    const std::uint32_t both = kElement == GradientElement::bfloat16 ? ptx::pack<ptx::bfloat16>(low, high)
                                                                     : ptx::pack<ptx::float16>(low, high);
    auto* const g_pair = static_cast<std::uint16_t*>(g_target) + offset;
    if (aligned && count > 1) {
      *reinterpret_cast<std::uint32_t*>(g_pair) = both;
      return;
    }
    if (count > 0) {
      g_pair[0] = static_cast<std::uint16_t>(both);
    }
    if (count > 1) {
      g_pair[1] = static_cast<std::uint16_t>(both >> 16);
    }
  }
}

// dQ of a tile of queries, by as many warps as summed it.
template <GradientElement kElement, int kThreads>
class ConvertedTile {
  using Order = tile::DqFragments<kThreads>;
  static constexpr int kGroup = 4;  // fragments of 16 x 8 at a time

 public:
  TESSERA_DEVICE explicit ConvertedTile(const GradientConvert& params) : params_(params) {
    const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * params.tile_q;
    const Row first = locate(params.batch, first_row, params.line_rows);
    const tile::Sequence sequence = tile::sequence_of(
        params.batch, params.batch.sequences == nullptr
                          ? 0
                          : locate_sequence(params.batch, static_cast<int>(first_row % params.line_rows)));
    g_offset_ = offset(params.dq_strides, first);
    g_tile_ = params.dq_sum + first_row * params.columns;
    rows_ = sequence.queries - first.query;
    written_ =
        params.stored_first == 0 || tile::key_tiles<MaskKind::window>(tile::bounds_of(params.band, sequence), sequence,
                                                                      first.query, params.tile_q, params.tile_k)
                                            .size() > 0;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row_warps = params.tile_q / 32;
    const int columns = params.columns * row_warps / params.warps;
    fragments_ = columns / 8;
    column_ = warp / row_warps * columns;
    row_ = warp % row_warps * 32 + static_cast<int>(threadIdx.x) % 32 / 4;
  }

  TESSERA_DEVICE void run() const {
    if (rows_ <= 0) {
      return;
    }
    for (int index = 0; index < 2 * fragments_; index += kGroup) {
      float value[kGroup][4];
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          value[k][e] =
              written_
                  ? params_.scale * g_tile_[Order::at(index + k, static_cast<int>(threadIdx.x)) + e * Order::kNeighbour]
                  : 0.0F;
        }
      }
      if (kElement != GradientElement::float32 && params_.whole_pieces != 0 && fragments_ % kGroup == 0) {
        store_pieces(value, index);
      } else {
        store_pairs(value, index);
      }
    }
  }

 private:
  TESSERA_DEVICE void store_pieces(const float (&value)[kGroup][4], int index) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      std::uint32_t words[kGroup];
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        words[k] = kElement == GradientElement::bfloat16
                       ? ptx::pack<ptx::bfloat16>(value[k][2 * r], value[k][2 * r + 1])
                       : ptx::pack<ptx::float16>(value[k][2 * r], value[k][2 * r + 1]);
      }
      ptx::transpose_quad(words[0], words[1], words[2], words[3]);
      const int row = row_ + index / fragments_ * 16 + 8 * r;
      const int column = column_ + index % fragments_ * 8 + static_cast<int>(threadIdx.x) % 4 * 8;
      if (row < rows_ && column < params_.dim_qk) {
        *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(params_.dq) + g_offset_ + row * params_.dq_strides.token +
                                  column) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  TESSERA_DEVICE void store_pairs(const float (&value)[kGroup][4], int index) const {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const int column = column_ + (index + k) % fragments_ * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row_ + (index + k) / fragments_ * 16 + 8 * r;
        if (row < rows_) {
          store_pair<kElement>(params_.dq, g_offset_ + row * params_.dq_strides.token + column, value[k][2 * r],
                               value[k][2 * r + 1], params_.dim_qk - column, params_.aligned != 0);
        }
      }
    }
  }

  const GradientConvert& params_;
  std::int64_t g_offset_;
  const float* g_tile_;
  int rows_;  // from the tile's first on
  bool written_;
  int fragments_;  // side by side; two of them below each other
  int row_, column_;
};

template <int kThreads>
TESSERA_DEVICE void convert_tile(const GradientConvert& params) {
  switch (params.element) {
    case GradientElement::float32:
      return ConvertedTile<GradientElement::float32, kThreads>(params).run();
    case GradientElement::bfloat16:
      return ConvertedTile<GradientElement::bfloat16, kThreads>(params).run();
    default:
      return ConvertedTile<GradientElement::float16, kThreads>(params).run();
  }
}

constexpr int kSinkThreads = 1024;

}  // namespace

}  // namespace tessera

extern "C" __global__ void __launch_bounds__(256) gradient_rows(const __grid_constant__ tessera::GradientRows params) {
  tessera::prepare_rows(params);
}
extern "C" __global__ void __launch_bounds__(128)
    gradient_convert_4(const __grid_constant__ tessera::GradientConvert params) {
  tessera::convert_tile<128>(params);
}
extern "C" __global__ void __launch_bounds__(256)
    gradient_convert_8(const __grid_constant__ tessera::GradientConvert params) {
  tessera::convert_tile<256>(params);
}
extern "C" __global__ void __launch_bounds__(tessera::kSinkThreads)
    gradient_sinks(const __grid_constant__ tessera::SinkRows params) {
  tessera::sum_sinks<tessera::kSinkThreads>(params);
}
