// Barriers: mbarrier objects in shared memory (PTX ISA, "mbarrier") and the sixteen named ones ("bar").
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

// Completes a phase after `arrivals` arrivals and all bytes that were announced.
TESSERA_DEVICE void mbarrier_init(std::uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals));
}

// Makes the initialisation of barriers visible to the copy engine.
TESSERA_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

TESSERA_DEVICE void mbarrier_arrive(std::uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Arrives and announces `bytes` that a copy will deliver.
TESSERA_DEVICE void mbarrier_arrive_expect(std::uint64_t* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is complete; a fresh barrier is in phase 0, and the one before it counts as complete.
TESSERA_DEVICE void mbarrier_wait(std::uint64_t* bar, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}\n" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}

// Waits for `threads` threads to reach the named barrier, this one among them.
TESSERA_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts for the named barrier and goes on.
TESSERA_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A number in global memory by which blocks take turns. What the copies of a thread wrote before its release_store is visible
// to the copies of one whose wait_until_equal sees the number.
TESSERA_DEVICE void wait_until_equal(const std::int32_t* g_number, std::int32_t value) {
  std::int32_t found;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(found) : "l"(g_number) : "memory");
  } while (found != value);
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

TESSERA_DEVICE void release_store(std::int32_t* g_number, std::int32_t value) {
  asm volatile("fence.proxy.async.global;\nst.release.gpu.global.s32 [%0], %1;" ::"l"(g_number), "r"(value) : "memory");
}

}  // namespace tessera::ptx
