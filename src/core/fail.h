// Building the messages of Error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tessera/error.h"

namespace tessera::internal {

// "<argument>: <value>; accepted: <accepted>"
[[noreturn]] void fail_argument(std::string_view argument, std::string_view value, std::string_view accepted);
[[noreturn]] void fail_argument(std::string_view argument, std::int64_t value, std::string_view accepted);
[[noreturn]] void fail_argument(std::string_view argument, double value, std::string_view accepted);

// Throws Error unless `threads` is 0, which stands for the default, or a number that a process may start.
void check_threads(int threads);

std::string to_text(double value);

// a * b and a + b; throws Error(invalid_argument) that names `what` on overflow of int64.
std::int64_t checked_mul(std::int64_t a, std::int64_t b, std::string_view what);
std::int64_t checked_add(std::int64_t a, std::int64_t b, std::string_view what);

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace tessera::internal
