// Warpgroup matrix products, D += A B with D [64 x N] in float32 registers (PTX ISA, "wgmma").
//
// Wgmma<N, Element>: `ss` takes A and B from shared memory, `rs` takes A from registers, which have to keep their values until it
// is complete. The *_first forms overwrite D: they are forms of their own because an accumulator that is read would keep its old
// values alive. `kTransA` and `kTransB` are 1 for an operand whose rows (A) or columns (B) are contiguous instead of its depth; B of
// rs_first has its depth contiguous.
#pragma once

#include "cuda/ptx/device.cuh"
#include "cuda/ptx/registers.cuh"

namespace tessera::ptx {

// Before the first product that uses registers written by other instructions.
TESSERA_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TESSERA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all but the latest `kPending` committed groups are complete.
template <int kPending>
TESSERA_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from reading the results of a product before the wait above it.
template <int kCount>
TESSERA_DEVICE void pin(float (&r_values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(r_values[i])::"memory");
  }
}

// Keeps the compiler from computing a value behind this place.
TESSERA_DEVICE void pin(float& value) { asm volatile("" : "+f"(value)); }

// Operands in shared memory lie in sub-tiles of rows of 128 bytes, swizzled in groups of 8 rows. A product with 64 columns takes
// the tensor cores 32 cycles, and a chain of uniform instructions that encodes an address takes longer: so the steps of a loop
// add `offset`, a constant, to what is encoded once.
TESSERA_DEVICE std::uint64_t operand(std::uint32_t s_address, std::uint32_t leading_bytes, std::uint32_t offset) {
  constexpr std::uint64_t kGroupBytes = 1024;  // from 8 rows to the next
  constexpr std::uint64_t kSwizzle128 = 1ULL << 62;
  const std::uint32_t low = ((s_address & 0x3FFFF) >> 4 | leading_bytes >> 4 << 16) + (offset >> 4);
  return low | kGroupBytes >> 4 << 32 | kSwizzle128;
}
// Depth contiguous (64 elements of depth a row):
TESSERA_DEVICE std::uint64_t depth_major(std::uint32_t s_address, std::uint32_t offset = 0) {
  return operand(s_address, 16, offset);
}
// Rows or columns contiguous (64 of them a row, each row one step of depth); `group_bytes` from one 64 to the next.
TESSERA_DEVICE std::uint64_t width_major(std::uint32_t s_address, std::uint32_t group_bytes, std::uint32_t offset = 0) {
  return operand(s_address, group_bytes, offset);
}

// Without a swizzle, depth contiguous: 8 rows of 16 bytes behind each other, `leading_bytes` from them to the same rows of the next
// 8 columns and `group_bytes` to the next 8 rows.
TESSERA_DEVICE std::uint64_t unswizzled(std::uint32_t s_address, std::uint32_t leading_bytes,
                                        std::uint32_t group_bytes) {
  const std::uint32_t low = (s_address & 0x3FFFF) >> 4 | leading_bytes >> 4 << 16;
  return low | static_cast<std::uint64_t>(group_bytes >> 4) << 32;
}

template <int N, class Element>
struct Wgmma;

// Operand lists of 8 registers, and of 8 groups of them.
#define TESSERA_LIST8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define TESSERA_LIST_0 TESSERA_LIST8(0, 1, 2, 3, 4, 5, 6, 7)
#define TESSERA_LIST_1 TESSERA_LIST8(8, 9, 10, 11, 12, 13, 14, 15)
#define TESSERA_LIST_2 TESSERA_LIST8(16, 17, 18, 19, 20, 21, 22, 23)
#define TESSERA_LIST_3 TESSERA_LIST8(24, 25, 26, 27, 28, 29, 30, 31)
#define TESSERA_LIST_4 TESSERA_LIST8(32, 33, 34, 35, 36, 37, 38, 39)
#define TESSERA_LIST_5 TESSERA_LIST8(40, 41, 42, 43, 44, 45, 46, 47)
#define TESSERA_LIST_6 TESSERA_LIST8(48, 49, 50, 51, 52, 53, 54, 55)
#define TESSERA_LIST_7 TESSERA_LIST8(56, 57, 58, 59, 60, 61, 62, 63)
#define TESSERA_LIST_8 TESSERA_LIST8(64, 65, 66, 67, 68, 69, 70, 71)
#define TESSERA_LIST_9 TESSERA_LIST8(72, 73, 74, 75, 76, 77, 78, 79)
#define TESSERA_LIST_10 TESSERA_LIST8(80, 81, 82, 83, 84, 85, 86, 87)
#define TESSERA_LIST_11 TESSERA_LIST8(88, 89, 90, 91, 92, 93, 94, 95)
#define TESSERA_LIST_12 TESSERA_LIST8(96, 97, 98, 99, 100, 101, 102, 103)
#define TESSERA_LIST_13 TESSERA_LIST8(104, 105, 106, 107, 108, 109, 110, 111)
#define TESSERA_LIST_14 TESSERA_LIST8(112, 113, 114, 115, 116, 117, 118, 119)
#define TESSERA_LIST_15 TESSERA_LIST8(120, 121, 122, 123, 124, 125, 126, 127)
#define TESSERA_LIST16 TESSERA_LIST_0 "," TESSERA_LIST_1
#define TESSERA_LIST32 TESSERA_LIST16 "," TESSERA_LIST_2 "," TESSERA_LIST_3
#define TESSERA_LIST40 TESSERA_LIST32 "," TESSERA_LIST_4
#define TESSERA_LIST48 TESSERA_LIST40 "," TESSERA_LIST_5
#define TESSERA_LIST56 TESSERA_LIST48 "," TESSERA_LIST_6
#define TESSERA_LIST64 TESSERA_LIST56 "," TESSERA_LIST_7
#define TESSERA_LIST72 TESSERA_LIST64 "," TESSERA_LIST_8
#define TESSERA_LIST80 TESSERA_LIST72 "," TESSERA_LIST_9
#define TESSERA_LIST88 TESSERA_LIST80 "," TESSERA_LIST_10
#define TESSERA_LIST96 TESSERA_LIST88 "," TESSERA_LIST_11
#define TESSERA_LIST128 TESSERA_LIST96 "," TESSERA_LIST_12 "," TESSERA_LIST_13 "," TESSERA_LIST_14 "," TESSERA_LIST_15

#define TESSERA_BIND8(access, d, i)                                                                       \
  access(d[i]), access(d[i + 1]), access(d[i + 2]), access(d[i + 3]), access(d[i + 4]), access(d[i + 5]), \
      access(d[i + 6]), access(d[i + 7])
#define TESSERA_BIND16(access, d) TESSERA_BIND8(access, d, 0), TESSERA_BIND8(access, d, 8)
#define TESSERA_BIND32(access, d) TESSERA_BIND16(access, d), TESSERA_BIND8(access, d, 16), TESSERA_BIND8(access, d, 24)
#define TESSERA_BIND40(access, d) TESSERA_BIND32(access, d), TESSERA_BIND8(access, d, 32)
#define TESSERA_BIND48(access, d) TESSERA_BIND40(access, d), TESSERA_BIND8(access, d, 40)
#define TESSERA_BIND56(access, d) TESSERA_BIND48(access, d), TESSERA_BIND8(access, d, 48)
#define TESSERA_BIND64(access, d) TESSERA_BIND56(access, d), TESSERA_BIND8(access, d, 56)
#define TESSERA_BIND72(access, d) TESSERA_BIND64(access, d), TESSERA_BIND8(access, d, 64)
#define TESSERA_BIND80(access, d) TESSERA_BIND72(access, d), TESSERA_BIND8(access, d, 72)
#define TESSERA_BIND88(access, d) TESSERA_BIND80(access, d), TESSERA_BIND8(access, d, 80)
#define TESSERA_BIND96(access, d) TESSERA_BIND88(access, d), TESSERA_BIND8(access, d, 88)
#define TESSERA_BIND128(access, d)                                                        \
  TESSERA_BIND96(access, d), TESSERA_BIND8(access, d, 96), TESSERA_BIND8(access, d, 104), \
      TESSERA_BIND8(access, d, 112), TESSERA_BIND8(access, d, 120)
#define TESSERA_UPDATED(x) "+f"(x)
#define TESSERA_WRITTEN(x) "=f"(x)

#define TESSERA_WGMMA_NAME(N, type) "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type

// REGS = N / 2 accumulators; I0 .. I6 are the numbers of the operands behind them.
#define TESSERA_WGMMA_TYPED(N, Element, type, REGS, I0, I1, I2, I3, I4, I5, I6)                                     \
  template <>                                                                                                       \
  struct Wgmma<N, Element> {                                                                                        \
    template <int kTransA = 0, int kTransB = 0>                                                                     \
    static TESSERA_DEVICE void ss(float (&d)[REGS], std::uint64_t a, std::uint64_t b) {                             \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0;\n" TESSERA_WGMMA_NAME(N, type) " {" TESSERA_LIST##REGS \
                   "}, %" #I0 ", %" #I1 ", add, 1, 1, %" #I2 ", %" #I3 "; }"                                        \
                   : TESSERA_BIND##REGS(TESSERA_UPDATED, d)                                                         \
                   : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));                                                   \
    }                                                                                                               \
    template <int kTransA = 0, int kTransB = 0>                                                                     \
    static TESSERA_DEVICE void ss_first(float (&d)[REGS], std::uint64_t a, std::uint64_t b) {                       \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, 0, 0;\n" TESSERA_WGMMA_NAME(N, type) " {" TESSERA_LIST##REGS \
                   "}, %" #I0 ", %" #I1 ", add, 1, 1, %" #I2 ", %" #I3 "; }"                                        \
                   : TESSERA_BIND##REGS(TESSERA_WRITTEN, d)                                                         \
                   : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));                                                   \
    }                                                                                                               \
    /* `add` false overwrites D. */                                                                                 \
    template <int kTransB = 1>                                                                                      \
    static TESSERA_DEVICE void rs(float (&d)[REGS], const std::uint32_t* a, std::uint64_t b, bool add) {            \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #I5                                                       \
                   ", 0;\n" TESSERA_WGMMA_NAME(N, type) " {" TESSERA_LIST##REGS                                     \
                   "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", add, 1, 1, %" #I6 "; }"                  \
                   : TESSERA_BIND##REGS(TESSERA_UPDATED, d)                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransB)); \
    }                                                                                                               \
    static TESSERA_DEVICE void rs_first(float (&d)[REGS], const std::uint32_t* a, std::uint64_t b) {                \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, 0, 0;\n" TESSERA_WGMMA_NAME(N, type) " {" TESSERA_LIST##REGS \
                   "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", add, 1, 1, 0; }"                         \
                   : TESSERA_BIND##REGS(TESSERA_WRITTEN, d)                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                           \
    }                                                                                                               \
  };

#define TESSERA_WGMMA(N, REGS, I0, I1, I2, I3, I4, I5, I6)                   \
  TESSERA_WGMMA_TYPED(N, bfloat16, "bf16", REGS, I0, I1, I2, I3, I4, I5, I6) \
  TESSERA_WGMMA_TYPED(N, float16, "f16", REGS, I0, I1, I2, I3, I4, I5, I6)

TESSERA_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
TESSERA_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
TESSERA_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
TESSERA_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
TESSERA_WGMMA(144, 72, 72, 73, 74, 75, 76, 77, 78)
TESSERA_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
TESSERA_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

}  // namespace tessera::ptx
