#include "support/allocation_counter.h"

#include <malloc.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
}

namespace {

std::atomic<bool> counting{false};
std::atomic<std::int64_t> smallest{0};
std::atomic<std::int64_t> allocations{0};
std::atomic<std::int64_t> allocated_bytes{0};
std::atomic<std::int64_t> largest_bytes{0};

void* count(void* memory, std::size_t size) {
  const auto bytes = static_cast<std::int64_t>(size);
  if (counting && bytes >= smallest) {
    ++allocations;
    allocated_bytes += bytes;
    std::int64_t largest = largest_bytes;
    while (bytes > largest && !largest_bytes.compare_exchange_weak(largest, bytes)) {
    }
  }
  return memory;
}

}  // namespace

extern "C" {
void* malloc(std::size_t size) { return count(__libc_malloc(size), size); }
void* calloc(std::size_t number, std::size_t size) { return count(__libc_calloc(number, size), number * size); }
void* realloc(void* old, std::size_t size) { return count(__libc_realloc(old, size), size); }
void* memalign(std::size_t alignment, std::size_t size) { return count(__libc_memalign(alignment, size), size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) { return count(__libc_memalign(alignment, size), size); }
int posix_memalign(void** result, std::size_t alignment, std::size_t size) {
  *result = count(__libc_memalign(alignment, size), size);
  return *result == nullptr ? ENOMEM : 0;
}
}

namespace tessera::test {

Count counted(const std::function<void()>& action, std::int64_t at_least) {
  allocations = allocated_bytes = largest_bytes = 0;
  smallest = at_least;
  counting = true;
  action();
  counting = false;
  return {allocations, allocated_bytes, largest_bytes};
}

}  // namespace tessera::test
