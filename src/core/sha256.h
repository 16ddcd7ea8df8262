// SHA-256 (FIPS 180-4), for names and checksums of files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tessera::internal {

using Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  Sha256& add(std::span<const std::byte> bytes);
  // The text with its length, so that no two lists of texts give the same bytes.
  Sha256& add(std::string_view text);
  Digest finish();

 private:
  void add_block();

  std::array<std::uint32_t, 8> state_{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                      0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
  std::array<std::byte, 64> block_{};
  std::uint64_t bytes_ = 0;
};

Digest sha256(std::span<const std::byte> bytes);
std::string hex(const Digest& digest);

}  // namespace tessera::internal
