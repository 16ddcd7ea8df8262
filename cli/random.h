// Random numbers that are the same on every machine and standard library.
#pragma once

#include <cstdint>

namespace tessera::cli {

// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) : state_(mix(seed ^ mix(stream + kGamma))) {}

  std::uint64_t next() {
    state_ += kGamma;
    return mix(state_);
  }

  // Each of lowest .. highest alike, but for a bias below 2^-32 for the ranges used here.
  std::int64_t between(std::int64_t lowest, std::int64_t highest) {
    const auto range = static_cast<std::uint64_t>(highest - lowest) + 1;
    return lowest + static_cast<std::int64_t>(next() % range);
  }

  // In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double probability) { return uniform() < probability; }

  // Mean 0, variance 1, within +-3.5: the sum of four uniform numbers, for the price of one draw.
  double normal() {
    const std::uint64_t bits = next();
    const auto sum =
        static_cast<double>((bits & 0xFFFF) + ((bits >> 16) & 0xFFFF) + ((bits >> 32) & 0xFFFF) + (bits >> 48));
    return (sum - 2.0 * 65535.0) * (1.7320508075688772 / 65536.0);
  }

 private:
  static constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15ULL;

  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace tessera::cli
