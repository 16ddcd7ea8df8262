// The plan of shared memory of a backward kernel, and the copies that fill it.
#pragma once

#include "cuda/ptx/cp_async.cuh"
#include "cuda/sm80/bwd/config.h"
#include "cuda/sm80/bwd/fragments.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm80 {

// A tile in shared memory, and where its scales are if it consists of pairs.
struct SharedTile {
  std::uint32_t address, scales;
  TESSERA_DEVICE operator std::uint32_t() const { return address; }
  // One by one: a choice between structures is one between memories.
  TESSERA_DEVICE static SharedTile choose(bool first, const SharedTile& a, const SharedTile& b) {
    return {first ? a.address : b.address, first ? a.scales : b.scales};
  }
};

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
  TESSERA_DEVICE SharedTile q(int s) const { return {kOwnsQueries ? base : stage(s), scales()}; }
  TESSERA_DEVICE SharedTile dout(int s) const { return {q(s) + kConfig.query_bytes(), scales() + kQueryScales}; }
  TESSERA_DEVICE SharedTile k(int s) const {
    return {kOwnsKeys ? base : stage(s) + kStreamedQueries, scales() + 2 * kQueryScales};
  }
  TESSERA_DEVICE SharedTile v(int s) const { return {k(s) + kConfig.key_bytes(), k(s).scales + kKeyScales}; }
  TESSERA_DEVICE SharedTile ds() const { return {base + kTiles, scales() + 2 * (kQueryScales + kKeyScales)}; }
  TESSERA_DEVICE SharedTile p() const { return {ds() + kConfig.weight_bytes(), ds().scales + kWeightScales}; }
  TESSERA_DEVICE std::uint32_t lse(int s) const { return base + kTiles + kWeights + s * kConfig.statistics_bytes(); }
  TESSERA_DEVICE std::uint32_t delta(int s) const { return lse(s) + 4 * kConfig.tile_q; }
  TESSERA_DEVICE std::uint32_t gate() const { return lse(kConfig.stages); }
  TESSERA_DEVICE std::uint32_t arrival() const { return gate() + 8; }

 private:
  static constexpr int kQueryScales = 4 * kConfig.tile_q / 16;
  static constexpr int kKeyScales = 4 * kConfig.tile_k / 16;
  static constexpr int kWeightScales = 4 * 2 * kConfig.warps;
  TESSERA_DEVICE std::uint32_t scales() const { return gate() + kConfig.kGateBytes; }
};

// 8 elements (4 of float32) of a row that is not aligned or, where kMayBeWide, that is stored wider than it is computed with.
template <class Element, bool kMayBeWide>
TESSERA_DEVICE uint4 gather_piece(const BackwardInput& input, std::int64_t offset, int count) {
  std::uint32_t words[4] = {};
  if constexpr (tile::kElementBytes<Element> == 4) {
    const auto* const g_row = static_cast<const std::uint32_t*>(input.data) + offset;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = i < count ? g_row[i] : 0;
    }
  } else if (kMayBeWide && input.widened != 0) {
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

// Where a thread copies in tiles of kColumns: a piece of 16 bytes in every kStep-th row.
template <class Element, int kColumns, int kThreads>
struct PieceOfThread {
  static constexpr int kBytes = tile::kElementBytes<Element>;
  static constexpr int kElements = 16 / kBytes;
  static constexpr int kPieces = kColumns / kElements;  // of a row
  static constexpr int kStep = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0);

  const int thread = static_cast<int>(kThreads == 32 ? threadIdx.x % 32 : threadIdx.x);  // of those that copy
  const int piece = thread % kPieces;
  const int first = thread / kPieces;

  // Of the thread's first piece, where the tile begins at `offset` (of elements).
  TESSERA_DEVICE const std::uint8_t* address(const BackwardInput& input, std::int64_t offset) const {
    offset += first * input.strides.token + piece * kElements;
    return static_cast<const std::uint8_t*>(input.data) + offset * kBytes;
  }
  TESSERA_DEVICE static std::int64_t step_bytes(const BackwardInput& input) {
    return kStep * input.strides.token * kBytes;
  }
  TESSERA_DEVICE std::uint32_t place(std::uint32_t s_tile, int row) const {
    return s_tile + piece_offset<Element, kColumns * kBytes>(row, piece);
  }
  // All of kRows rows.
  template <int kRows>
  TESSERA_DEVICE void copy_rows(std::uint32_t s_tile, const std::uint8_t* g_piece, const BackwardInput& input) const {
    static_assert(kRows % kStep == 0);
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      // Rows that keep their number modulo 8 keep their permutation.
      ptx::copy_async<16>(
          kStep % 8 == 0 ? place(s_tile, first) + i * kStep * kColumns * kBytes : place(s_tile, first + i * kStep),
          g_piece);
      g_piece += step_bytes(input);
    }
  }
};

// kRows rows of columns [column, column + kColumns) to shared memory, zeros outside `rows` and `dim`. `offset` is that of the
// first row's first column.
template <class Element, bool kMayBeWide, int kRows, int kColumns, int kThreads>
TESSERA_DEVICE void load_tile(std::uint32_t s_tile, const BackwardInput& input, std::int64_t offset, int rows,
                              int column, int dim) {
  using Piece = PieceOfThread<Element, kColumns, kThreads>;
  const Piece piece;
  const int inside = min(max(dim - column - piece.piece * Piece::kElements, 0), Piece::kElements);
  const auto* g_piece = piece.address(input, offset + column);
  if (input.aligned != 0 && rows >= kRows && inside == Piece::kElements) {
    piece.template copy_rows<kRows>(s_tile, g_piece, input);
  } else if (input.aligned != 0) {
#pragma unroll 1
    for (int row = piece.first; row < kRows; row += Piece::kStep) {
      const bool there = row < rows && inside > 0;
      ptx::copy_async<16>(piece.place(s_tile, row), there ? g_piece : input.data, there ? inside * Piece::kBytes : 0);
      g_piece += Piece::step_bytes(input);
    }
  } else {
    offset += column + piece.piece * Piece::kElements;
#pragma unroll 1
    for (int row = piece.first; row < kRows; row += Piece::kStep) {
      const uint4 words = gather_piece<Element, kMayBeWide>(
          input, offset + static_cast<std::int64_t>(row) * input.strides.token, row < rows ? inside : 0);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(piece.place(s_tile, row)), "r"(words.x),
                   "r"(words.y), "r"(words.z), "r"(words.w)
                   : "memory");
    }
  }
}

}  // namespace tessera::sm80
