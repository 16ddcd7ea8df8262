#include "cpu/isa.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "core/fail.h"
#include "cpu/flash_kernels.h"
#include "cpu/threads.h"
#include "tessera/plan.h"

namespace tessera::internal {

namespace {

std::string_view wanted_by_environment() {
  const char* wanted = std::getenv("TESSERA_ISA");
  return wanted == nullptr ? std::string_view() : wanted;
}

}  // namespace

bool isa_is_forced(std::string_view isa) { return !isa.empty() || !wanted_by_environment().empty(); }

const CpuKernels& select_kernels(std::string_view isa) {
  if (!isa_is_forced(isa)) {
    return *available_kernels().front();
  }
  const std::string_view source = isa.empty() ? "TESSERA_ISA" : "isa";
  const std::string_view wanted = isa.empty() ? wanted_by_environment() : isa;
  std::string accepted;
  for (const CpuKernels* kernels : available_kernels()) {
    if (wanted == kernels->isa) {
      return *kernels;
    }
    accepted += (accepted.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  fail_argument(source, wanted, accepted + " on this CPU");
}

}  // namespace tessera::internal

namespace tessera {

CpuInfo cpu_info() {
  CpuInfo info;
  for (const internal::CpuKernels* kernels : internal::available_kernels()) {
    info.isas.emplace_back(kernels->isa);
  }
  info.selected_isa = internal::select_kernels({}).isa;
  info.threads = internal::default_threads();
#ifdef _SC_LEVEL2_CACHE_SIZE
  info.l2_bytes = std::max<std::int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 0);
#endif
  return info;
}

}  // namespace tessera
