// float32 in products of 16-bit elements: x = scale (high + low), where high and low are float16 of 11 bits each and the scale, a
// power of two, is that of a group of rows. Three products of those have an error of 2^-22 and take half the time of three of tf32,
// which has the same 11 bits; what float16 lacks is range, which the scales bring: what a group's largest number is more than 2^17
// times as large as loses bits, and is off by 2^-39 of that number.
//
// A tile becomes pairs where it lies: 8 columns of float32 are two chunks of 16 bytes, and become one of high and one of low parts.
// A warp converts what it has copied, so that no barrier comes in between.
#pragma once

#include "cuda/tile/shared_rows.cuh"

namespace tessera::tile {

// Of a sum of products, `small` is that of those with a low part. Where operands hold an infinity it is not a number (infinity minus
// itself, or times 0), and `large` not finite.
TESSERA_DEVICE float join_pairs(float large, float small) {
  return fabsf(large) < __builtin_huge_valf() ? large + small : large;
}

// Two numbers, within the range of float16, as their high parts and their low ones.
TESSERA_DEVICE void split_pair(float x, float y, std::uint32_t& high, std::uint32_t& low) {
  high = ptx::pack<ptx::float16>(x, y);
  const float2 rounded = ptx::unpack<ptx::float16>(high);
  low = ptx::pack<ptx::float16>(x - rounded.x, y - rounded.y);
}

// What takes numbers into the upper range of float16, and back.
struct PairScale {
  float to, from;
};

// For numbers of which a lane's largest is `most`, which infinities take part in: `finite_most()` leaves them out. By all lanes.
template <class FiniteMost>
TESSERA_DEVICE PairScale pair_scale(float most, const FiniteMost& finite_most) {
  constexpr int kInfinite = 255;
  constexpr int kLeast = 22;  // smaller ones take the scale of this exponent, whose inverse times 2^6 is finite
  constexpr int kTop = 14;    // float16 goes to 2^16
  const auto exponent = [](float x) {
    return static_cast<int>(__reduce_max_sync(0xFFFFFFFFU, __float_as_uint(x)) >> 23);
  };
  int top = exponent(most);
  if (top == kInfinite) [[unlikely]] {
    top = exponent(finite_most());
  }
  top = max(top, kLeast);
  return {__int_as_float((2 * 127 + kTop - top) << 23), __int_as_float((top - kTop) << 23)};
}

TESSERA_DEVICE float finite_size(float x) {
  const float size = fabsf(x);
  return size == __builtin_huge_valf() ? 0.0F : size;
}

// The largest of some numbers, and their scale.
template <int kCount>
TESSERA_DEVICE PairScale scale_of(const float (&r_x)[kCount]) {
  float most = 0.0F;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    most = fmaxf(most, fabsf(r_x[i]));
  }
  return pair_scale(most, [&] {
    float finite = 0.0F;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      finite = fmaxf(finite, finite_size(r_x[i]));
    }
    return finite;
  });
}

// Groups of kRows rows of kColumns, whose chunks are swizzled by row.
template <int kColumns, int kRows>
class PairGroup {
 public:
  static constexpr int kRowBytes = 4 * kColumns;
  static constexpr int kBytes = kRows * kRowBytes;
  static_assert(kColumns % 32 == 0 && kRows % 8 == 0);

  // By a warp whose lanes have copied the group; returns what products with it are to be multiplied by. Lanes have a row each of 8,
  // and every fourth pair of chunks of it: neither what they read nor what they write meets in a bank.
  TESSERA_DEVICE static float convert(std::uint32_t s_group) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const std::uint32_t s_lane = s_group + lane % 8 * kRowBytes + ((lane / 8 * 2) ^ lane % 8) * 16;
    float r_x[kKept ? kPairs : 1][8];
    float most = 0.0F;
    for_each_pair([&](int i, std::uint32_t offset) {
      float (&r_pair)[8] = r_x[kKept ? i : 0];
      load(r_pair, s_lane + offset);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        most = fmaxf(most, fabsf(r_pair[k]));
      }
    });
    const PairScale scale = pair_scale(most, [&] {
      float finite = 0.0F;
#pragma unroll 1
      for (int i = 0; i < kPairs; ++i) {
        float r_again[8];
        load(r_again, s_lane + i / kPairsOfRow * 8 * kRowBytes + i % kPairsOfRow * 128);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          finite = fmaxf(finite, finite_size(r_again[k]));
        }
      }
      return finite;
    });
    for_each_pair([&](int i, std::uint32_t offset) {
      float (&r_pair)[8] = r_x[kKept ? i : 0];
      if constexpr (!kKept) {
        load(r_pair, s_lane + offset);
      }
      std::uint32_t r_high[4], r_low[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        split_pair(r_pair[2 * k] * scale.to, r_pair[2 * k + 1] * scale.to, r_high[k], r_low[k]);
      }
      store(s_lane + offset, r_high);
      store((s_lane ^ 16) + offset, r_low);
    });
    return scale.from;
  }

 private:
  static constexpr int kPairsOfRow = kColumns / 32;  // of chunks, of a lane
  static constexpr int kPairs = kRows / 8 * kPairsOfRow;
  static constexpr bool kKept = kPairs <= 4;  // in registers, else they are read twice

  template <class Body>
  TESSERA_DEVICE static void for_each_pair(const Body& body) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      body(i, i / kPairsOfRow * 8 * kRowBytes + i % kPairsOfRow * 128);
    }
  }
  TESSERA_DEVICE static void load(float (&r_x)[8], std::uint32_t s_chunk) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(r_x[i]), "=f"(r_x[i + 1]), "=f"(r_x[i + 2]), "=f"(r_x[i + 3])
                   : "r"(i == 0 ? s_chunk : s_chunk ^ 16)
                   : "memory");
    }
  }
  TESSERA_DEVICE static void store(std::uint32_t s_chunk, const std::uint32_t (&r_x)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(s_chunk), "r"(r_x[0]), "r"(r_x[1]), "r"(r_x[2]),
                 "r"(r_x[3])
                 : "memory");
  }
};

// A tile of kRows rows, in groups of 8 that are dealt to warps in turn.
template <int kColumns, int kRows, int kWarps>
class FloatPairs {
  using Rows = SharedRows<ptx::float32, kColumns>;
  static constexpr int kGroupRows = 8;
  using Group = PairGroup<kColumns, kGroupRows>;
  static constexpr int kGroups = kRows / kGroupRows;
  static_assert(kRows % kGroupRows == 0 && Group::kRowBytes == Rows::kRowBytes);

 public:
  // As copy_rows, of the warp's groups.
  TESSERA_DEVICE static void copy(int warp, std::uint32_t s_tile, const std::uint8_t* g_first, const RowSource& source,
                                  int row_bytes, int valid_rows) {
    const bool whole = source.piece_bytes == 16 && row_bytes >= Rows::kChunks * 16 && valid_rows >= kRows;
    const int lane = static_cast<int>(threadIdx.x % 32);
    for_each_group(warp, [&](int group) {
      const std::uint32_t s_group = s_tile + group * Group::kBytes;
      const std::uint8_t* const g_group = g_first + group * kGroupRows * source.token_stride;
      if (!whole) {
        copy_rows_slowly<Rows, kGroupRows, 32>(s_group, g_group, source, row_bytes, valid_rows - group * kGroupRows,
                                               lane);
        return;
      }
      constexpr int kLanes = Rows::kChunks < 32 ? Rows::kChunks : 32;  // of a row
      constexpr int kStep = 32 / kLanes;
      const std::uint8_t* g_row = g_group + lane / kLanes * source.token_stride + lane % kLanes * 16;
#pragma unroll
      for (int row = 0; row < kGroupRows; row += kStep) {
#pragma unroll
        for (int chunk = 0; chunk < Rows::kChunks; chunk += kLanes) {
          ptx::copy_async<16>(s_group + Rows::offset(row + lane / kLanes, chunk + lane % kLanes), g_row + chunk * 16);
        }
        g_row += kStep * source.token_stride;
      }
    });
  }

  // The warp's groups, whose copies have arrived, become pairs, and their scales are written.
  TESSERA_DEVICE static void convert(int warp, std::uint32_t s_tile, std::uint32_t s_scales) {
    __syncwarp();  // lanes convert what others have copied
    for_each_group(warp, [&](int group) {
      const float scale = Group::convert(s_tile + group * Group::kBytes);
      if (threadIdx.x % 32 == 0) {
        ptx::store_float(s_scales + 4 * group, scale);
      }
    });
  }

 private:
  template <class Body>
  TESSERA_DEVICE static void for_each_group(int warp, const Body& body) {
#pragma unroll
    for (int i = 0; i < (kGroups + kWarps - 1) / kWarps; ++i) {
      const int group = i * kWarps + warp;
      if (kGroups % kWarps == 0 || group < kGroups) {
        body(group);
      }
    }
  }
};

}  // namespace tessera::tile
