// Kernels that start before the one in front of them on their stream has ended (PTX ISA, "griddepcontrol"), of compute
// capability 9.0; before that nothing happens here, and kernels start when the one in front has ended.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::ptx {

// Lets the next kernel start once every block has called this or ended.
TESSERA_DEVICE void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernel in front has ended and what it wrote is visible. Every block has to: else this kernel might end before
// that one, and the next would find neither.
TESSERA_DEVICE void wait_for_last_grid() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace tessera::ptx
