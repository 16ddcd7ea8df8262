// The part that a warp has of every product of a step: 32 rows, in fragments of 16, by fragments of 8 columns.
//
// Half of the warps have dV and half dK, in parts as near to squares as they come: what limits a step is the shared memory that
// fragments come from. Of 32 x 64 it takes 3/4 of what two of 32 x 32 take, of 64 x 64 2/3 of two of 32 x 64.
#pragma once

#include "cuda/sm80/bwd/config.h"
#include "cuda/sm80/bwd/fragments.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element>
struct BackwardWarp {
  static constexpr int kRows = BackwardConfig::kWarpRows;
  static constexpr int kM = kRows / 16;
  static constexpr int kQueryWarps = kConfig.tile_q / kRows;
  static constexpr int kKeyM = kConfig.columns == 128 && kConfig.tile_k == 128 ? 4 : 2;
  static constexpr int kKeyWarps = kConfig.tile_k / (16 * kKeyM);  // below each other
  static constexpr int kScoreColumns = kConfig.tile_k * kQueryWarps / kConfig.warps;
  static constexpr int kQueryColumns = kConfig.columns * kQueryWarps / kConfig.warps;
  static constexpr int kKeyColumns = 2 * kConfig.columns * kKeyWarps / kConfig.warps;
  static constexpr int kScoreN = kScoreColumns / 8;
  static constexpr int kQueryN = kQueryColumns / 8;
  static constexpr int kKeyN = kKeyColumns / 8;
  static constexpr int kKeptWords = (4 * kScoreN + 31) / 32;  // a bit for each score of a fragment of rows
  static_assert(kConfig.warps % kQueryWarps == 0 && kConfig.warps % (2 * kKeyWarps) == 0 && kKeyN % 2 == 0 &&
                kScoreColumns % 16 == 0);

  using Scores = float[kM][4 * kScoreN];
  using KeyRows = float[kKeyM][4 * kKeyN];
  using QueryRows = float[kM][4 * kQueryN];
  using Kept = std::uint32_t[kM][kKeptWords];

  const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
  // The thread's first element of a fragment.
  const int row = static_cast<int>(threadIdx.x) % 32 / 4;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;

  // Where the warp's part begins: of [queries x keys] and [queries x columns], and of [keys x columns].
  TESSERA_DEVICE int query_row() const { return warp % kQueryWarps * kRows; }
  TESSERA_DEVICE int key_row() const { return warp % kKeyWarps * 16 * kKeyM; }
  TESSERA_DEVICE int score_column() const { return warp / kQueryWarps * kScoreColumns; }
  TESSERA_DEVICE int query_column() const { return warp / kQueryWarps * kQueryColumns; }
  TESSERA_DEVICE int key_column() const { return warp % (kConfig.warps / 2) / kKeyWarps * kKeyColumns; }
  // Whether it has dV, not dK.
  TESSERA_DEVICE bool has_dv() const { return warp < kConfig.warps / 2; }
};

}  // namespace tessera::sm80
