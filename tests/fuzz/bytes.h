// Reads small numbers off a fuzzer's input; past its end every number is the lowest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tessera::fuzz {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : next_(data), left_(size) {}

  std::uint8_t byte() {
    if (left_ == 0) {
      return 0;
    }
    --left_;
    return *next_++;
  }

  // In [low, high], from one byte: high - low is at most 255.
  std::int64_t between(std::int64_t low, std::int64_t high) { return low + byte() % (high - low + 1); }
  bool flag() { return (byte() & 1) != 0; }

  // Any 64 bits.
  std::int64_t word() {
    std::uint64_t value = 0;
    for (int n = 0; n < 8; ++n) {
      value = value << 8 | byte();
    }
    return static_cast<std::int64_t>(value);
  }

  // Any float32, NaN and infinities among them.
  float real() {
    const std::uint32_t bits = static_cast<std::uint32_t>(word());
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  const std::uint8_t* next_;
  std::size_t left_;
};

}  // namespace tessera::fuzz
