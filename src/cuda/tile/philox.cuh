// Philox4x32-7 (Salmon et al., SC 2011), as src/core/philox.h has it for the CPU.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::tile {

TESSERA_DEVICE uint4 philox4x32_7(uint4 counter, std::uint32_t key_low, std::uint32_t key_high) {
#pragma unroll
  for (int round = 0; round < 7; ++round) {
    const std::uint64_t first = static_cast<std::uint64_t>(0xD2511F53U) * counter.x;
    const std::uint64_t second = static_cast<std::uint64_t>(0xCD9E8D57U) * counter.z;
    counter = {static_cast<std::uint32_t>(second >> 32) ^ counter.y ^ key_low, static_cast<std::uint32_t>(second),
               static_cast<std::uint32_t>(first >> 32) ^ counter.w ^ key_high, static_cast<std::uint32_t>(first)};
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return counter;
}

}  // namespace tessera::tile
