// Philox4x32-7 (Salmon et al., SC 2011) and Tessera's use of it for dropout. Seven rounds are the fewest that
// they found to be Crush-resistant; ten, their default, would cost GPUs 40 % more integer instructions, which bound dropout there.
#pragma once

#include <array>
#include <cstdint>

namespace tessera::internal {

using PhiloxBlock = std::array<std::uint32_t, 4>;

inline PhiloxBlock philox4x32_7(PhiloxBlock counter, std::uint64_t seed) {
  auto key_low = static_cast<std::uint32_t>(seed);
  auto key_high = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const std::uint64_t first = 0xD2511F53ULL * counter[0];
    const std::uint64_t second = 0xCD9E8D57ULL * counter[2];
    counter = {static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key_low, static_cast<std::uint32_t>(second),
               static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key_high, static_cast<std::uint32_t>(first)};
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return counter;
}

// One block of 16 bytes serves, of 64 keys in a row, the 16 that a lane of a tensor-core fragment holds: keys
// {2t, 2t+1} + 8 i of lane t, i = 0..7. Counter: (4 * (key / 64) + t, query, head, batch).
inline PhiloxBlock dropout_block(std::uint64_t seed, std::int64_t batch, std::int64_t head, std::int64_t query,
                                 std::int64_t key_group, int lane) {
  return philox4x32_7({static_cast<std::uint32_t>(4 * key_group + lane), static_cast<std::uint32_t>(query),
                       static_cast<std::uint32_t>(head), static_cast<std::uint32_t>(batch)},
                      seed);
}

inline unsigned dropout_byte(const PhiloxBlock& block, std::int64_t key) {
  const auto index = static_cast<unsigned>(((key & 63) >> 3) * 2 + (key & 1));
  return (block[index >> 2] >> (8 * (index & 3))) & 0xFFU;
}

inline int dropout_lane(std::int64_t key) { return static_cast<int>((key & 7) >> 1); }

}  // namespace tessera::internal
