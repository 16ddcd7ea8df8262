#include "cuda/jit/unavailable.h"

#include <cstdlib>
#include <string_view>

#include "core/fail.h"

namespace tessera::internal {

std::vector<std::byte> UnavailableCompiler::compile(const CompileJob& /*job*/) const {
  throw Error(ErrorCode::internal, reason_);
}

const KernelCompiler& unless_switched_off(const KernelCompiler& (*compiler)()) {
  static const UnavailableCompiler off("TESSERA_JIT is off");
  const char* const variable = std::getenv("TESSERA_JIT");
  const std::string_view value = variable == nullptr ? "" : variable;
  if (value == "off" || value == "0") {
    return off;
  }
  if (!value.empty() && value != "on" && value != "1") {
    fail_argument("TESSERA_JIT", value, "on, off");
  }
  return compiler();
}

}  // namespace tessera::internal
