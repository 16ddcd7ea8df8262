// The union of partial results, as tessera::merge computes it: O <- O - sigmoid(lse_b - lse) (O - O_b) in float32. Bound by
// memory: up to five partials are merged in one go, so that the sum in between is neither written nor read.
#include "cuda/common/blocks.h"
#include "cuda/tile/block_rows.cuh"

namespace tessera {

namespace {

constexpr float kInfinity = __builtin_huge_valf();

// Weight of the next partial in the union with those before, and the union's LSE.
struct Weight {
  float of_next;
  float lse;
};

TESSERA_DEVICE Weight weigh(float lse, float next) {
  if (next == -kInfinity) {
    return {0.0F, lse};
  }
  if (lse == -kInfinity) {
    return {1.0F, next};
  }
  const float difference = next - lse;
  const float power = expf(-fabsf(difference));
  return {1.0F / (1.0F + expf(-difference)), (difference > 0 ? next : lse) + log1pf(power)};
}

// The difference of an infinity and a number, times a weight, would take the infinity away again.
TESSERA_DEVICE float mix(float a, float b, float weight) {
  if (weight == 0.0F || weight == 1.0F) {
    return weight == 0.0F ? a : b;
  }
  return isinf(a) || isinf(b) ? (1.0F - weight) * a + weight * b : a - weight * (a - b);
}

// kLanes neighbours for each row; a warp holds whole rows, so that all have read the LSE before one writes it.
template <int kWidth, int kLanes>
TESSERA_DEVICE void merge_block(const BlockMerge& merge) {
  const auto rows = static_cast<std::uint32_t>(merge.shape[0] * merge.shape[1] * merge.shape[2]);
  const std::uint32_t stride = gridDim.x * blockDim.x / kLanes;
  const std::uint32_t rounds = (rows + stride - 1) / stride;
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  std::uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes;
  for (std::uint32_t round = 0; round < rounds; ++round, row += stride) {
    const bool inside = row < rows;
    const tile::RowIndex at = tile::row_index(inside ? row : 0, merge.shape);
    float r_weight[BlockMerge::kMostTerms] = {};
    float lse = -kInfinity;
#pragma unroll
    for (int t = 0; t < BlockMerge::kMostTerms; ++t) {
      if (t < merge.count) {
        const BlockView& lses = merge.lses[t];
        const float next = static_cast<const float*>(lses.data)[tile::offset_of(lses, at)];
        const Weight weight = t == 0 ? Weight{1.0F, next} : weigh(lse, next);
        r_weight[t] = weight.of_next;
        lse = weight.lse;
      }
    }
    __syncwarp();
    if (!inside) {
      continue;
    }
    if (lane == 0) {
      static_cast<float*>(merge.lse.data)[tile::offset_of(merge.lse, at)] = lse;
    }
    for (std::int64_t column = lane * kWidth; column < merge.shape[3]; column += kLanes * kWidth) {
      auto result = tile::load<kWidth>(merge.outs[0], tile::offset_of(merge.outs[0], at) + column);
#pragma unroll
      for (int t = 1; t < BlockMerge::kMostTerms; ++t) {
        if (t < merge.count) {
          const auto next = tile::load<kWidth>(merge.outs[t], tile::offset_of(merge.outs[t], at) + column);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            result.of[i] = mix(result.of[i], next.of[i], r_weight[t]);
          }
        }
      }
      tile::store<kWidth>(merge.out, tile::offset_of(merge.out, at) + column, result);
    }
  }
}

}  // namespace

}  // namespace tessera

extern "C" __global__ void __launch_bounds__(256, 6) merge_8(const __grid_constant__ tessera::BlockMerge merge) {
  tessera::merge_block<8, 16>(merge);
}
extern "C" __global__ void __launch_bounds__(256, 6) merge_1(const __grid_constant__ tessera::BlockMerge merge) {
  tessera::merge_block<1, 32>(merge);
}
