// What a piece of code allocates. The C allocator of a program that links this is replaced by one that counts and passes on
// to glibc's, which the sanitizers do as well: not together with them.
#pragma once

#include <cstdint>
#include <functional>

namespace tessera::test {

struct Count {
  std::int64_t allocations = 0;
  std::int64_t bytes = 0;
  std::int64_t largest = 0;
};

// Of all threads, while `action` runs: those allocations that have `at_least` bytes.
Count counted(const std::function<void()>& action, std::int64_t at_least = 0);

}  // namespace tessera::test
