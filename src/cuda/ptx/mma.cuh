// Warp-wide matrix products and the loads of their fragments (PTX ISA, "mma.sync" and "ldmatrix"), of compute capability 8.0.
//
// Lane l holds, of D [16 x 8], the rows l / 4 and l / 4 + 8 and the columns l % 4 * 2 + {0, 1}: d[0], d[1] of the first row,
// d[2], d[3] of the second.
#pragma once

#include "cuda/ptx/registers.cuh"

namespace tessera::ptx {

struct float32 {};
// float32 in memory and in sums, rounded to 11 bits in products.
struct tf32 {};

// D += A B: A [16 x 16] and B [16 x 8] of 16-bit elements. a[0..3]: (row l / 4, depth l % 4 * 2 + {0, 1}), the same of row + 8,
// both again at depth + 8. b0, b1: column l / 4, depth l % 4 * 2 + {0, 1} and those + 8.
template <class Element>
TESSERA_DEVICE void mma(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1);

template <>
TESSERA_DEVICE void mma<bfloat16>(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
TESSERA_DEVICE void mma<float16>(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// D = A B + C, where C is the same in all columns: `upper` in row l / 4 and `lower` in the row 8 further on. D need not be cleared.
template <class Element>
TESSERA_DEVICE void mma_first(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1, float upper = 0.0F,
                              float lower = 0.0F);

template <>
TESSERA_DEVICE void mma_first<bfloat16>(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1,
                                        float upper, float lower) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, "
      "%11, %11};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(upper), "f"(lower));
}
template <>
TESSERA_DEVICE void mma_first<float16>(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1,
                                       float upper, float lower) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %11, "
      "%11};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(upper), "f"(lower));
}

// D += A B: A [16 x 8] and B [8 x 8] of tf32, whose low 13 bits are ignored. a[0..3]: (row l / 4, depth l % 4), the same of
// row + 8, both again at depth + 4. b0, b1: column l / 4, depth l % 4 and l % 4 + 4.
TESSERA_DEVICE void mma_tf32(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// To the nearest number of 11 bits.
TESSERA_DEVICE std::uint32_t round_to_tf32(std::uint32_t x) {
  std::uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
  return y;
}

// Four 8 x 8 matrices of 16-bit elements (or 8 x 4 of 32 bits) from shared memory: lane l gives the address of row l % 8 of
// matrix l / 8, and gets of each the 32 bits l % 4 of row l / 4.
TESSERA_DEVICE void load_matrices(std::uint32_t s_address, std::uint32_t& r0, std::uint32_t& r1, std::uint32_t& r2,
                                  std::uint32_t& r3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(s_address)
               : "memory");
}

// The same, each matrix transposed: elements l % 4 * 2 + {0, 1} of column l / 4.
TESSERA_DEVICE void load_matrices_transposed(std::uint32_t s_address, std::uint32_t& r0, std::uint32_t& r1,
                                             std::uint32_t& r2, std::uint32_t& r3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(s_address)
               : "memory");
}

// Whether an instruction stores such matrices (compute capability 9.0): store_matrices in registers.cuh.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kStoresMatrices = true;
#else
inline constexpr bool kStoresMatrices = false;
#endif

TESSERA_DEVICE float load_float(std::uint32_t s_address) { return __uint_as_float(load_word(s_address)); }
TESSERA_DEVICE void store_float(std::uint32_t s_address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(s_address), "f"(value) : "memory");
}

}  // namespace tessera::ptx
