// The matrix products of a consumer warpgroup of the backward kernel, each one committed group, and dS on its way to them. Operands
// that both warpgroups share lie in shared memory; rows are keys.
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/bwd/shared.cuh"

namespace tessera::sm90 {

template <BackwardConfig kConfig, class Element, std::uint32_t kFeatures>
class BackwardProducts {
 public:
  using Shared = BackwardShared<kConfig, kFeatures>;
  using Forms = typename Shared::Forms;
  static constexpr int kScores = kConfig.tile_q / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  enum class Statistic { lse, delta };

  TESSERA_DEVICE BackwardProducts(const Shared& shared, int warpgroup) : shared_(shared), warpgroup_(warpgroup) {}

  // A B^T of this warpgroup's rows of A and all rows of B, which are a stage, both with their depth contiguous; minus LSE or delta
  // in parts.
  template <Statistic kStatistic>
  TESSERA_DEVICE void issue_scores(float (&r_result)[kScores], const std::uint8_t* s_a, const std::uint8_t* s_b,
                                   int stage) const {
    using Product = ptx::Wgmma<kConfig.tile_q, Element>;
    const std::uint32_t s_rows = ptx::fresh(ptx::shared_address(s_a) + warpgroup_ * 64 * 128);
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_b) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.head_dim / 16; ++k) {
      const std::uint64_t a = ptx::depth_major(s_rows, k / 4 * kConfig.tile_k * 128 + k % 4 * 32);
      const std::uint64_t b = ptx::depth_major(s_stage, k / 4 * kConfig.tile_q * 128 + k % 4 * 32);
      if (k == 0) {
        Product::ss_first(r_result, a, b);
      } else {
        Product::ss(r_result, a, b);
      }
    }
    issue_parts<kStatistic>(r_result);
    ptx::wgmma_commit();
  }

  // dV += P^T dO or dK += dS^T Q.
  TESSERA_DEVICE void issue_gradient(float (&r_gradient)[kOutputs], const std::uint32_t (&r_weights)[kScores / 2],
                                     const std::uint8_t* s_stages, int stage, bool accumulate) const {
    using Product = ptx::Wgmma<kConfig.head_dim, Element>;
    const std::uint32_t s_stage = ptx::fresh(ptx::shared_address(s_stages) + stage * kConfig.query_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_q / 16; ++k) {
      Product::rs(r_gradient, r_weights + 4 * k, ptx::width_major(s_stage, kConfig.tile_q * 128, k * 2048),
                  accumulate || k > 0);
    }
    ptx::wgmma_commit();
  }

  // This warpgroup's half of dQ = dS K, over all keys.
  TESSERA_DEVICE void issue_dq(float (&r_dq)[32], int buffer) const {
    using Product = ptx::Wgmma<64, Element>;
    constexpr bool kHalfOfRows = kConfig.tile_q == 128;
    const std::uint32_t s_weights = ptx::fresh(ptx::shared_address(shared_.weights) + buffer * kConfig.weight_bytes() +
                                               (kHalfOfRows ? warpgroup_ * kConfig.tile_k * 128 : 0));
    const std::uint32_t s_keys =
        ptx::fresh(ptx::shared_address(shared_.keys) + (kHalfOfRows ? 0 : warpgroup_ * kConfig.tile_k * 128));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_k / 16; ++k) {
      const std::uint64_t a = ptx::width_major(s_weights, kConfig.tile_k * 128, k * 2048);
      const std::uint64_t b = ptx::width_major(s_keys, kConfig.tile_k * 128, k * 2048);
      if (k == 0) {
        Product::template ss_first<1, 1>(r_dq, a, b);
      } else {
        Product::template ss<1, 1>(r_dq, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  // dS^T as rows of keys: 64 queries (128 bytes) in a row of a sub-tile.
  TESSERA_DEVICE void store_score_gradients(const std::uint32_t (&r_packed)[kScores / 2], int buffer) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = warpgroup_ * 64 + static_cast<int>(threadIdx.x % 128) / 32 * 16 + lane % 16;
    const std::uint32_t s_row =
        ptx::fresh(ptx::shared_address(shared_.weights) + buffer * kConfig.weight_bytes() + row * 128);
#pragma unroll
    for (int i = 0; i < kScores / 4; i += 2) {
      const int chunk = i + lane / 16;
      const std::uint32_t s_target = s_row + chunk / 8 * kConfig.tile_k * 128 + (chunk % 8 ^ row % 8) * 16;
      ptx::store_matrices(s_target, r_packed[2 * i], r_packed[2 * i + 1], r_packed[2 * i + 2], r_packed[2 * i + 3]);
    }
  }

 private:
  // LSE or delta in parts is one more step of depth, of ones and parts. Read from shared memory by each thread for its columns,
  // they take its bandwidth four times as long.
  template <Statistic kStatistic>
  TESSERA_DEVICE void issue_parts(float (&r_result)[kScores]) const {
    using Product = ptx::Wgmma<kConfig.tile_q, ptx::bfloat16>;
    constexpr int kUnit = static_cast<int>(kStatistic);
    if constexpr (kFeatures == 0) {
      const std::uint32_t s_unit = ptx::fresh(ptx::shared_address(shared_.units)) + kUnit * 128;
      const std::uint32_t s_parts = ptx::fresh(ptx::shared_address(shared_.parts));
      Product::ss(r_result, ptx::unswizzled(s_unit, (2 - kUnit) * 128, 0), ptx::unswizzled(s_parts, 0, 128));
    } else if constexpr (kStatistic == Statistic::delta && Forms::kDeltaParts) {
      const std::uint32_t s_unit = ptx::fresh(ptx::shared_address(shared_.units));
      const std::uint32_t s_parts = ptx::fresh(ptx::shared_address(shared_.parts));
      Product::ss(r_result, ptx::unswizzled(s_unit, 0, 0), ptx::unswizzled(s_parts, 0, 128));
    } else if constexpr (kStatistic == Statistic::lse && Forms::kLseParts) {
      // In registers, which shared memory has no room for and which are free again when P is computed.
      const int column = static_cast<int>(ptx::fresh(threadIdx.x) % 4 * 2);
      const std::uint32_t ones = column == 0 ? 0x3F803F80U : column == 2 ? 0x3F80U : 0U;
      const std::uint32_t r_unit[4] = {ones, ones, 0, 0};
      const std::uint32_t s_parts = ptx::fresh(ptx::shared_address(shared_.parts));
      Product::template rs<0>(r_result, r_unit, ptx::unswizzled(s_parts, 0, 128), true);
    }
  }

  const Shared& shared_;
  const int warpgroup_;
};

}  // namespace tessera::sm90
