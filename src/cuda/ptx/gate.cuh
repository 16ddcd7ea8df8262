// Barriers in shared memory as compute capability 8.0 has them (PTX ISA, "mbarrier"), by shared addresses: some threads arrive and
// go on, and those that need it wait later.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

// Completes a phase after `arrivals` arrivals.
TESSERA_DEVICE void gate_init(std::uint32_t s_gate, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(s_gate), "r"(arrivals) : "memory");
}

TESSERA_DEVICE void gate_arrive(std::uint32_t s_gate) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(s_gate) : "memory");
}

// Arrives once all asynchronous copies that this thread has begun are there.
TESSERA_DEVICE void gate_arrive_after_copies(std::uint32_t s_gate) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(s_gate) : "memory");
}

// Waits until the phase of this parity is complete; a fresh gate is in phase 0, and the one before it counts as complete.
TESSERA_DEVICE void gate_wait(std::uint32_t s_gate, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}\n" ::"r"(s_gate),
      "r"(parity)
      : "memory");
}

}  // namespace tessera::ptx
