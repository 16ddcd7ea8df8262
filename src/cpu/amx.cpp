#include "cpu/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace tessera::internal {

namespace {

bool cpu_has_bfloat16_tiles() {
  constexpr std::uint32_t kOsSavesState = 1U << 27;  // leaf 1, ECX
  constexpr std::uint32_t kBfloat16 = 1U << 22;      // leaf 7, EDX
  constexpr std::uint32_t kTiles = 1U << 24;
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  std::uint32_t c = 0;
  std::uint32_t d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsSavesState) == 0) {
    return false;
  }
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBfloat16) != 0 && (d & kTiles) != 0;
}

bool system_saves_tiles() {
  constexpr std::uint32_t kTileState = 3U << 17;  // of XCR0: configuration and data
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

bool system_grants_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool amx_bf16_usable() {
  static const bool usable = cpu_has_bfloat16_tiles() && system_saves_tiles() && system_grants_tiles();
  return usable;
}

}  // namespace tessera::internal

#else

namespace tessera::internal {

bool amx_bf16_usable() { return false; }

}  // namespace tessera::internal

#endif
