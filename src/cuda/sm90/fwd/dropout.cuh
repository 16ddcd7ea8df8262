// Dropout in the forward kernel: which weights of a tile of keys a thread keeps.
#pragma once

#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/tile/dropout.cuh"

namespace tessera::sm90 {

// The Philox blocks of a thread's two rows of scores, with a keep bit at the top of each byte.
template <ForwardConfig kConfig>
class KeepBlocks {
 public:
  // `first_row`: the query of the warp's first row.
  TESSERA_DEVICE void draw(const DropoutParams& dropout, const ForwardTile& work, int first_row, int key_tile) {
    static_assert(kConfig.tile_k % kGroup == 0);
    const auto group = static_cast<std::uint32_t>((dropout.key_start + key_tile * kConfig.tile_k) / kGroup);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + static_cast<int>(threadIdx.x % 32) / 4 + 8 * r;
      const auto query = static_cast<std::uint32_t>(dropout.query_start + dropout.query_stride * row);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        rows_[r][g] = tile::keep_block(dropout, group + g, threadIdx.x % 4, query, dropout.head_start + work.head,
                                       dropout.batch_start + static_cast<std::uint32_t>(work.valid - 1));
      }
    }
  }

  // 0, from the words that draw() leaves: what needs it comes after them. The assembler would move them down to where they
  // are used, one block after the other to save registers: a sixth slower with two warpgroups, but not with three, which hide
  // the latency and have fewer registers.
  TESSERA_DEVICE int drawn(const DropoutParams& dropout) const {
    std::uint32_t mixed = 0;
    if constexpr (kConfig.warpgroups == 2) {
#pragma unroll
      for (int n = 0; n < 4 * kGroups; ++n) {
        mixed ^= word(0, n) ^ word(1, n);
      }
    }
    return static_cast<int>(mixed & dropout.threshold >> 16);  // the threshold is at most 256
  }

  // Zeroes what is not kept of a thread's fragment of 16-bit weights.
  template <int kCount>
  TESSERA_DEVICE void drop(std::uint32_t (&r_weights)[kCount]) const {
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t kept = word(r, n);
        r_weights[4 * n + r] &= tile::spread_top_bits(kept, kept, 0x1100U);
        r_weights[4 * n + 2 + r] &= tile::spread_top_bits(kept, kept, 0x3322U);
      }
    }
  }

 private:
  static constexpr int kGroup = 64;  // keys of a Philox block
  static constexpr int kGroups = kConfig.tile_k / kGroup;

  TESSERA_DEVICE std::uint32_t word(int r, int n) const {
    const uint4& block = rows_[r][n / 4];
    return n % 4 == 0 ? block.x : n % 4 == 1 ? block.y : n % 4 == 2 ? block.z : block.w;
  }

  uint4 rows_[2][kGroups > 0 ? kGroups : 1];
};

}  // namespace tessera::sm90
