// Tiles of rows in shared memory, and how threads copy them there.
#pragma once

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/shared_rows.h"

namespace tessera::tile {

template <class Element>
inline constexpr int kElementBytes = ptx::kSame<Element, ptx::float32> || ptx::kSame<Element, ptx::tf32> ? 4 : 2;

// What 16-byte chunk c of row r becomes, so that what one load reads touches every bank once.
enum class Swizzle : int {
  by_row,   // c ^ r % 8: 8 rows of a chunk, as ldmatrix reads
  by_pair,  // c ^ r / 2 % 4 * 2: two chunks of 4 rows that are 2 apart, as single words of float32 are read
};

// Each row is padded to a multiple of 128 bytes.
template <class Element, int kColumns, Swizzle kSwizzle = Swizzle::by_row>
struct SharedRows {
  static constexpr int kChunks = kColumns * kElementBytes<Element> / 16;
  static constexpr int kRowBytes = (kChunks + 7) / 8 * 128;

  TESSERA_DEVICE static int offset(int row, int chunk) {
    const int swizzled = kSwizzle == Swizzle::by_row ? chunk ^ row % 8 : chunk ^ row / 2 % 4 * 2;
    return row * kRowBytes + swizzled * 16;
  }
};

TESSERA_DEVICE const std::uint8_t* row_address(const RowSource& source, int batch, std::int64_t token, int head) {
  return static_cast<const std::uint8_t*>(source.data) + batch * source.batch_stride + token * source.token_stride +
         head * source.head_stride;
}

// Copies of a tile in chunks of 16 bytes of which some bytes or rows are not there, or in pieces that are narrower.
template <class Rows, int kRows, int kThreads>
TESSERA_DEVICE void copy_rows_slowly(std::uint32_t s_tile, const std::uint8_t* g_first, const RowSource& source,
                                     int row_bytes, int valid_rows, int thread = static_cast<int>(threadIdx.x)) {
  const int piece = source.piece_bytes;
#pragma unroll 1
  for (int index = thread; index < kRows * Rows::kChunks; index += kThreads) {
    const int row = index / Rows::kChunks;
    const int chunk = index % Rows::kChunks;
    const int valid = row < valid_rows ? min(max(row_bytes - chunk * 16, 0), 16) : 0;
    const std::uint32_t s_chunk = s_tile + Rows::offset(row, chunk);
    const std::uint8_t* const g_chunk = valid > 0 ? g_first + row * source.token_stride + chunk * 16 : g_first;
    if (piece == 16) {
      ptx::copy_async<16>(s_chunk, g_chunk, valid);
      continue;
    }
#pragma unroll 1
    for (int at = 0; at < 16; at += piece) {
      const int there = min(max(valid - at, 0), piece);
      const std::uint8_t* const g_piece = there > 0 ? g_chunk + at : g_first;
      if (piece == 8) {
        ptx::copy_async<8>(s_chunk + at, g_piece, there);
      } else if (piece == 4) {
        ptx::copy_async<4>(s_chunk + at, g_piece, there);
      } else {
        const std::uint16_t value = there > 0 ? *reinterpret_cast<const std::uint16_t*>(g_piece) : std::uint16_t{0};
        ptx::store_half(s_chunk + at, value);
      }
    }
  }
}

// Begins to copy rows [0, valid_rows) from `g_first`, of which `row_bytes` are there, to a tile of kRows; what is not there
// becomes zero. The copies belong to the group that the caller commits; pieces of 2 bytes are there with the next barrier.
template <class Rows, int kRows, int kThreads>
TESSERA_DEVICE void copy_rows(std::uint32_t s_tile, const std::uint8_t* g_first, const RowSource& source, int row_bytes,
                              int valid_rows) {
  constexpr int kChunks = Rows::kChunks;
  const bool whole = source.piece_bytes == 16 && row_bytes >= kChunks * 16 && valid_rows >= kRows;
  if (!whole) {
    copy_rows_slowly<Rows, kRows, kThreads>(s_tile, g_first, source, row_bytes, valid_rows);
    return;
  }
  // A thread keeps its column in every kLanes chunks and, where rows are a multiple of 8 apart, its place in the swizzle:
  // addresses are one pointer and immediates.
  constexpr int kLanes = kThreads / kChunks % 8 == 0 && kThreads % kChunks == 0 ? kChunks : 8;
  constexpr int kStep = kThreads / kLanes;
  static_assert(kRows % kStep == 0);
  const int first_row = static_cast<int>(threadIdx.x) / kLanes;
  const int first_chunk = static_cast<int>(threadIdx.x) % kLanes;
  const std::uint8_t* g_row = g_first + first_row * source.token_stride + first_chunk * 16;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep) {
    const std::uint32_t s_row = s_tile + Rows::offset(first_row + row, first_chunk);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += kLanes) {
      if (chunk + kLanes <= kChunks || first_chunk + chunk < kChunks) {
        ptx::copy_async<16>(s_row + chunk * 16, g_row + chunk * 16);
      }
    }
    g_row += kStep * source.token_stride;
  }
}

}  // namespace tessera::tile
