#include "function/source.h"

namespace tessera::internal {

std::string wrapped_source(const UserFunction& function) {
  return "namespace tessera::math::user {\n#line 1 \"" + function.name() + "\"\n" + function.source() +
         "\n}  // namespace tessera::math::user\n";
}

}  // namespace tessera::internal
