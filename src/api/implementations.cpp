#include "api/implementations.h"

#include <array>

#include "api/reference_impl.h"
#include "cpu/flash_impl.h"
#include "cpu/standard_impl.h"
#include "cuda/decode_impl.h"
#include "cuda/sm80_impl.h"
#include "cuda/sm90_impl.h"

namespace tessera::internal {

namespace {

constexpr std::size_t kGpuImplementations = 3;

}  // namespace

std::span<const Impl* const> all_implementations() {
  static const std::array<const Impl*, 6> impls{&decode_impl(), &sm90_impl(),      &sm80_impl(),
                                                &flash_impl(),  &reference_impl(), &standard_impl()};
  return impls;
}

std::span<const Impl* const> cpu_implementations() { return all_implementations().subspan(kGpuImplementations); }

}  // namespace tessera::internal
