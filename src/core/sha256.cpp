#include "core/sha256.h"

#include <algorithm>
#include <bit>

namespace tessera::internal {

namespace {

constexpr std::array<std::uint32_t, 64> kConstants{
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};

std::byte byte_of(std::uint64_t value, int index) { return static_cast<std::byte>(value >> (8 * index)); }

}  // namespace

void Sha256::add_block() {
  std::array<std::uint32_t, 64> words{};
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t k = 0; k < 4; ++k) {
      words[i] = words[i] << 8 | std::to_integer<std::uint32_t>(block_[4 * i + k]);
    }
  }
  for (std::size_t i = 16; i < 64; ++i) {
    const std::uint32_t a = words[i - 15];
    const std::uint32_t b = words[i - 2];
    words[i] = words[i - 16] + words[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint32_t first =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + kConstants[i] + words[i];
    const std::uint32_t second =
        (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const std::array<std::uint32_t, 8> added{a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < 8; ++i) {
    state_[i] += added[i];
  }
}

Sha256& Sha256::add(std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes) {
    block_[bytes_++ % 64] = byte;
    if (bytes_ % 64 == 0) {
      add_block();
    }
  }
  return *this;
}

Sha256& Sha256::add(std::string_view text) {
  std::array<std::byte, 8> length{};
  for (int i = 0; i < 8; ++i) {
    length[static_cast<std::size_t>(i)] = byte_of(text.size(), i);
  }
  return add(std::span<const std::byte>(length)).add(std::as_bytes(std::span(text.data(), text.size())));
}

Digest Sha256::finish() {
  const std::uint64_t bits = 8 * bytes_;
  const std::byte end{0x80};
  add(std::span(&end, 1));
  const std::byte zero{0};
  while (bytes_ % 64 != 56) {
    add(std::span(&zero, 1));
  }
  std::array<std::byte, 8> length{};
  for (int i = 0; i < 8; ++i) {
    length[static_cast<std::size_t>(i)] = byte_of(bits, 7 - i);
  }
  add(std::span<const std::byte>(length));
  Digest digest{};
  for (std::size_t i = 0; i < digest.size(); ++i) {
    digest[i] = byte_of(state_[i / 4], 3 - static_cast<int>(i % 4));
  }
  return digest;
}

Digest sha256(std::span<const std::byte> bytes) { return Sha256().add(bytes).finish(); }

std::string hex(const Digest& digest) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : digest) {
    const auto value = std::to_integer<unsigned>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

}  // namespace tessera::internal
