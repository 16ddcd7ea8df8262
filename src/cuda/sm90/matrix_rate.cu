// Matrix products alone, both operands in shared memory, on random numbers: the most that the tensor cores give at the clock
// and the power of this device.
#include "cuda/ptx/wgmma.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) matrix_rate(const __grid_constant__ int steps) {
  using namespace tessera;
  extern __shared__ std::uint8_t s_raw[];
  std::uint8_t* s_data = s_raw + ((1024 - reinterpret_cast<std::uintptr_t>(s_raw) % 1024) % 1024);
  std::uint32_t state = threadIdx.x * 2654435761U + blockIdx.x * 40503U + 1;
  for (int i = threadIdx.x; i < 48 * 1024 / 4; i += 256) {
    state = state * 1664525U + 1013904223U;
    // Two bfloat16 numbers of magnitude 0.5 to 2 with random signs and mantissas.
    reinterpret_cast<std::uint32_t*>(s_data)[i] = (state & 0x80FF80FFU) | 0x3F003F00U;
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  float r_sum[128];
  const std::uint32_t s_a = ptx::shared_address(s_data) + threadIdx.x / 128 * 8192;
  const std::uint32_t s_b = ptx::shared_address(s_data) + 2 * 8192;
  using Product = ptx::Wgmma<256, ptx::bfloat16>;
  ptx::wgmma_fence();
  Product::ss_first(r_sum, ptx::depth_major(s_a), ptx::depth_major(s_b));
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::pin(r_sum);
  for (int step = 0; step < steps; ++step) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Product::ss(r_sum, ptx::depth_major(s_a + 32 * k), ptx::depth_major(s_b + 32 * k));
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::pin(r_sum);
  }
  if (r_sum[0] == 0.123456789F) {
    asm volatile("trap;");  // never; without a reader the compiler drops the products
  }
}
