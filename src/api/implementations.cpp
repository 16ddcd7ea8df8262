#include "api/implementations.h"

#include <array>

#include "api/reference_impl.h"
#include "cpu/flash_impl.h"
#include "cpu/standard_impl.h"

namespace tessera::internal {

std::span<const Impl* const> all_implementations() {
  static const std::array<const Impl*, 3> impls{&flash_impl(), &reference_impl(), &standard_impl()};
  return impls;
}

}  // namespace tessera::internal
