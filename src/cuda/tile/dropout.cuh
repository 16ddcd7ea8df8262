// Dropout's choice of weights as bits in bytes, four weights an instruction. docs/numerics.md defines the choice.
//
// A Philox block of 16 bytes serves, of 64 keys in a row, the 16 that lane t of a quad holds in a row of a fragment: keys
// {2t, 2t + 1} + 8 i, bytes 2 i and 2 i + 1.
#pragma once

#include "cuda/tile/philox.cuh"
#include "cuda/tile/program.h"

namespace tessera::tile {

// Of each bit. In one instruction, which the compiler does not find: the or of two words where the third has ones, else their and.
TESSERA_DEVICE std::uint32_t majority(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t most;
  asm("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(most) : "r"(a), "r"(b), "r"(c));
  return most;
}

// The top bit of each byte: whether the byte is `threshold` or more, so that its weight is kept. The top bits are set before
// the low seven bits of the threshold are subtracted, so that no byte borrows from its neighbour.
TESSERA_DEVICE std::uint32_t keep_bits(std::uint32_t bytes, std::uint32_t threshold) {
  constexpr std::uint32_t kOnes = 0x01010101U;
  const std::uint32_t low = (bytes | 0x80U * kOnes) - (threshold & 0x7FU) * kOnes;
  return majority(bytes, low, threshold < 128 ? 0xFFFFFFFFU : 0U);
}

// The keep bits of the keys from 64 * `key_group` on that are lane `lane`'s, for one query. Positions are of the whole.
TESSERA_DEVICE uint4 keep_block(const DropoutParams& params, std::uint32_t key_group, std::uint32_t lane,
                                std::uint32_t query, std::uint32_t head, std::uint32_t batch) {
  const uint4 block = philox4x32_7({4 * key_group + lane, query, head, batch}, params.seed_low, params.seed_high);
  return {keep_bits(block.x, params.threshold), keep_bits(block.y, params.threshold),
          keep_bits(block.z, params.threshold), keep_bits(block.w, params.threshold)};
}

// Copies of the top bit of the byte of (low, high) that each nibble of the selector names: masks of whole bytes.
TESSERA_DEVICE std::uint32_t spread_top_bits(std::uint32_t low, std::uint32_t high, std::uint32_t bytes) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(low), "r"(high), "r"(bytes | 0x8888U));
  return mask;
}

}  // namespace tessera::tile
