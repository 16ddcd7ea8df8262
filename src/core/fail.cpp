#include "core/fail.h"

#include <array>
#include <charconv>

namespace tessera::internal {

void fail_argument(std::string_view argument, std::string_view value, std::string_view accepted) {
  std::string message(argument);
  message.append(": ").append(value).append("; accepted: ").append(accepted);
  throw Error(ErrorCode::invalid_argument, message);
}

void fail_argument(std::string_view argument, std::int64_t value, std::string_view accepted) {
  fail_argument(argument, std::string_view(std::to_string(value)), accepted);
}

void fail_argument(std::string_view argument, double value, std::string_view accepted) {
  fail_argument(argument, std::string_view(to_text(value)), accepted);
}

void check_threads(int threads) {
  constexpr int kMost = 4096;
  if (threads < 0 || threads > kMost) {
    fail_argument("threads", std::int64_t{threads}, "0 (the default) to 4096");
  }
}

std::string to_text(double value) {
  std::array<char, 32> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::general, 6);
  return {buffer.data(), result.ptr};
}

std::int64_t checked_mul(std::int64_t a, std::int64_t b, std::string_view what) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail_argument(what, std::to_string(a) + " * " + std::to_string(b), "products below 2^63");
  }
  return product;
}

std::int64_t checked_add(std::int64_t a, std::int64_t b, std::string_view what) {
  std::int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    fail_argument(what, std::to_string(a) + " + " + std::to_string(b), "sums below 2^63");
  }
  return sum;
}

}  // namespace tessera::internal
