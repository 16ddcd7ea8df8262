// The plan of shared memory of a backward kernel, and the copies that fill it.
#pragma once

#include "cuda/ptx/cp_async.cuh"
#include "cuda/sm80/bwd/config.h"
#include "cuda/sm80/bwd/fragments.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm80 {

// Addresses in the shared window. Tiles start at multiples of their rows, statistics come last in a stage.
template <BackwardConfig kConfig, BackwardRole kRole>
struct BackwardTiles {
  static constexpr bool kOwnsQueries = kConfig.resident != 0 && kRole == BackwardRole::queries;
  static constexpr bool kOwnsKeys = kConfig.resident != 0 && kRole != BackwardRole::queries;
  static constexpr int kOwned = kConfig.owned_bytes(kRole);
  static constexpr int kStage = kConfig.stage_bytes(kRole);
  static constexpr int kStreamedQueries = kOwnsQueries ? 0 : 2 * kConfig.query_bytes();
  static constexpr int kStreamedKeys = kOwnsKeys ? 0 : 2 * kConfig.key_bytes();
  static constexpr int kTiles = kOwned + kConfig.stages * (kStreamedQueries + kStreamedKeys);
  static constexpr int kWeights = kConfig.weight_tiles(kRole) * kConfig.weight_bytes();

  std::uint32_t base;

  TESSERA_DEVICE std::uint32_t stage(int s) const { return base + kOwned + s * (kStreamedQueries + kStreamedKeys); }
  TESSERA_DEVICE std::uint32_t q(int s) const { return kOwnsQueries ? base : stage(s); }
  TESSERA_DEVICE std::uint32_t dout(int s) const { return q(s) + kConfig.query_bytes(); }
  TESSERA_DEVICE std::uint32_t k(int s) const { return kOwnsKeys ? base : stage(s) + kStreamedQueries; }
  TESSERA_DEVICE std::uint32_t v(int s) const { return k(s) + kConfig.key_bytes(); }
  TESSERA_DEVICE std::uint32_t ds() const { return base + kTiles; }
  TESSERA_DEVICE std::uint32_t p() const { return ds() + kConfig.weight_bytes(); }
  TESSERA_DEVICE std::uint32_t lse(int s) const { return base + kTiles + kWeights + s * kConfig.statistics_bytes(); }
  TESSERA_DEVICE std::uint32_t delta(int s) const { return lse(s) + 4 * kConfig.tile_q; }
  TESSERA_DEVICE std::uint32_t gate() const { return lse(kConfig.stages); }
  TESSERA_DEVICE std::uint32_t arrival() const { return gate() + 8; }
};

// 8 elements (4 of float32) of a row that is not aligned, or that is stored wider than it is computed with.
template <class Element>
TESSERA_DEVICE uint4 gather_piece(const BackwardInput& input, std::int64_t offset, int count) {
  std::uint32_t words[4] = {};
  if constexpr (tile::kElementBytes<Element> == 4) {
    const auto* const g_row = static_cast<const std::uint32_t*>(input.data) + offset;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = i < count ? g_row[i] : 0;
    }
  } else if (input.widened != 0) {
    const auto* const g_row = static_cast<const float*>(input.data) + offset;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = ptx::pack<Element>(2 * i < count ? g_row[2 * i] : 0.0F, 2 * i + 1 < count ? g_row[2 * i + 1] : 0.0F);
    }
  } else {
    const auto* const g_row = static_cast<const std::uint16_t*>(input.data) + offset;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t value = i < count ? g_row[i] : 0;
      words[i / 2] |= value << (16 * (i % 2));
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// kRows rows of columns [column, column + kColumns) to shared memory, zeros outside `rows` and `dim`. `offset` is that of the
// first row's first column.
template <class Element, int kRows, int kColumns, int kThreads>
TESSERA_DEVICE void load_tile(std::uint32_t s_tile, const BackwardInput& input, std::int64_t offset, int rows,
                              int column, int dim) {
  constexpr int kBytes = tile::kElementBytes<Element>;
  constexpr int kPieceElements = 16 / kBytes;
  constexpr int kPieces = kColumns / kPieceElements;  // of a row
  static_assert(kRows * kPieces % kThreads == 0 && kThreads % kPieces == 0);
  constexpr int kStep = kThreads / kPieces;  // rows
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const int first = static_cast<int>(threadIdx.x) / kPieces;
  const int inside = min(max(dim - column - piece * kPieceElements, 0), kPieceElements);
  offset += first * input.strides.token + column + piece * kPieceElements;
  const auto s_piece = [&](int row) { return s_tile + piece_offset<Element, kColumns * kBytes>(row, piece); };
  const std::int64_t step_bytes = kStep * input.strides.token * kBytes;
  const auto* g_piece = static_cast<const std::uint8_t*>(input.data) + offset * kBytes;
  if (input.aligned != 0 && rows >= kRows && inside == kPieceElements) {
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      // Rows that keep their number modulo 8 keep their permutation.
      ptx::copy_async<16>(kStep % 8 == 0 ? s_piece(first) + i * kStep * kColumns * kBytes : s_piece(first + i * kStep),
                          g_piece);
      g_piece += step_bytes;
    }
  } else if (input.aligned != 0) {
#pragma unroll 1
    for (int row = first; row < kRows; row += kStep) {
      const bool there = row < rows && inside > 0;
      ptx::copy_async<16>(s_piece(row), there ? g_piece : input.data, there ? inside * kBytes : 0);
      g_piece += step_bytes;
    }
  } else {
#pragma unroll 1
    for (int row = first; row < kRows; row += kStep) {
      const uint4 words = gather_piece<Element>(
          input, offset + static_cast<std::int64_t>(row - first) * input.strides.token, row < rows ? inside : 0);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(s_piece(row)), "r"(words.x), "r"(words.y),
                   "r"(words.z), "r"(words.w)
                   : "memory");
    }
  }
}

}  // namespace tessera::sm80
