// Sums and conversions of blocks of tokens, statistics of rows and lines. All are bound by memory.
#include "cuda/common/blocks.h"

#include "cuda/tile/block_rows.cuh"

namespace tessera {

namespace {

// The launcher keeps the number of items below 2^31, since 64-bit divisions would cost more than the loads.
template <int kWidth>
TESSERA_DEVICE void sum_block(const BlockSum& sum) {
  const auto columns = static_cast<std::uint32_t>(sum.shape[3] / kWidth);
  const auto items = static_cast<std::uint32_t>(sum.shape[0] * sum.shape[1] * sum.shape[2]) * columns;
  for (std::uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < items; item += gridDim.x * blockDim.x) {
    const tile::RowIndex at = tile::row_index(item / columns, sum.shape);
    const std::int64_t column = static_cast<std::int64_t>(item % columns) * kWidth;
    tile::Elements<kWidth> total;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      total.of[i] = sum.value;
    }
#pragma unroll
    for (int t = 0; t < BlockSum::kMostTerms; ++t) {
      if (t < sum.count) {
        const BlockView& term = sum.terms[t];
        const auto values = tile::load<kWidth>(term, tile::offset_of(term, at) + column * term.strides[3]);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          total.of[i] = t == 0 ? values.of[i] : total.of[i] + values.of[i];
        }
      }
    }
    tile::store<kWidth>(sum.target, tile::offset_of(sum.target, at) + column * sum.target.strides[3], total);
  }
}

// kLanes neighbours for each row.
template <int kWidth, int kLanes>
TESSERA_DEVICE void delta_of_rows(const BlockDelta& delta) {
  const auto rows = static_cast<std::uint32_t>(delta.shape[0] * delta.shape[1] * delta.shape[2]);
  const std::uint32_t stride = gridDim.x * blockDim.x / kLanes;
  const std::uint32_t rounds = (rows + stride - 1) / stride;  // the same for all lanes of a warp, which shuffle
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  std::uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes;
  for (std::uint32_t round = 0; round < rounds; ++round, row += stride) {
    const bool inside = row < rows;
    const tile::RowIndex at = tile::row_index(inside ? row : 0, delta.shape);
    float sum = 0.0F;
    for (std::int64_t column = lane * kWidth; inside && column < delta.shape[3]; column += kLanes * kWidth) {
      const auto dout = tile::load<kWidth>(delta.dout, tile::offset_of(delta.dout, at) + column);
      const auto out = tile::load<kWidth>(delta.out, tile::offset_of(delta.out, at) + column);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sum = fmaf(dout.of[i], out.of[i], sum);
      }
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
    }
    if (inside && lane == 0) {
      const float dlse = delta.dlse.data == nullptr
                             ? 0.0F
                             : static_cast<const float*>(delta.dlse.data)[tile::offset_of(delta.dlse, at)];
      static_cast<float*>(delta.target.data)[tile::offset_of(delta.target, at)] = dlse - sum;
    }
  }
}

}  // namespace

}  // namespace tessera

extern "C" __global__ void __launch_bounds__(256, 6) sum_8(const __grid_constant__ tessera::BlockSum sum) {
  tessera::sum_block<8>(sum);
}
extern "C" __global__ void __launch_bounds__(256, 6) sum_1(const __grid_constant__ tessera::BlockSum sum) {
  tessera::sum_block<1>(sum);
}
extern "C" __global__ void __launch_bounds__(256, 6) delta_8(const __grid_constant__ tessera::BlockDelta delta) {
  tessera::delta_of_rows<8, 16>(delta);
}
extern "C" __global__ void __launch_bounds__(256, 6) delta_1(const __grid_constant__ tessera::BlockDelta delta) {
  tessera::delta_of_rows<1, 32>(delta);
}

extern "C" __global__ void __launch_bounds__(256) add_to_lines(const __grid_constant__ tessera::BlockLines add) {
  using namespace tessera;
  const auto items = static_cast<std::uint32_t>(add.shape[0] * add.shape[1] * add.shape[2]);
  for (std::uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < items; item += gridDim.x * blockDim.x) {
    const tile::RowIndex at = tile::row_index(item, add.shape);
    const float number = static_cast<const float*>(
        add.numbers.data)[at.first * add.numbers.strides[0] + at.second * add.numbers.strides[1]];
    static_cast<float*>(add.lines.data)[tile::offset_of(add.lines, at)] += add.factor * number;
  }
}

// A block for each head, whose threads add in a fixed order.
extern "C" __global__ void __launch_bounds__(256) sink_gradients(const __grid_constant__ tessera::BlockSinks sinks) {
  using namespace tessera;
  __shared__ double s_sums[256];
  const std::uint32_t head = blockIdx.x;
  const auto tokens = static_cast<std::uint32_t>(sinks.shape[2]);
  const std::uint32_t rows = static_cast<std::uint32_t>(sinks.shape[0]) * tokens;
  const float sink = static_cast<const float*>(sinks.sinks.data)[head * sinks.sinks.strides[0]];
  double sum = 0;
  for (std::uint32_t row = threadIdx.x; row < rows; row += 256) {
    const tile::RowIndex at{row / tokens, head, row % tokens};
    const float lse = static_cast<const float*>(sinks.lse.data)[tile::offset_of(sinks.lse, at)];
    if (lse != -__builtin_huge_valf()) {
      const float delta = static_cast<const float*>(sinks.minus_delta.data)[tile::offset_of(sinks.minus_delta, at)];
      sum += static_cast<double>(expf(sink - lse) * delta);
    }
  }
  s_sums[threadIdx.x] = sum;
  for (std::uint32_t half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      s_sums[threadIdx.x] += s_sums[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    static_cast<float*>(sinks.dsinks.data)[head * sinks.dsinks.strides[0]] = static_cast<float>(s_sums[0]);
  }
}

// Sums of four uniform numbers from a counter: within +-3.5.
extern "C" __global__ void __launch_bounds__(256) noise(const __grid_constant__ tessera::BlockNoise noise) {
  using namespace tessera;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t item = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; item < noise.count;
       item += stride) {
    std::uint64_t z = (static_cast<std::uint64_t>(item) + 1) * 0x9E3779B97F4A7C15ULL ^
                      static_cast<std::uint64_t>(noise.seed) * 0xD1B54A32D192ED03ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    const auto part = [&](int shift) { return static_cast<float>((z >> shift) & 0xFFFF); };
    const float sum = part(0) + part(16) + part(32) + part(48);
    const tile::Elements<1> value{{(sum - 2.0F * 65535.0F) * (1.7320508F / 65536.0F)}};
    tile::store<1>(noise.target, item, value);
  }
}
