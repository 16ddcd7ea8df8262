// The message of a wrong argument.
#pragma once

#include <string>

#include "tessera/error.h"

namespace tessera::python {

// Throws Error(invalid_argument): "<argument>: <value>; accepted: <accepted>".
[[noreturn]] inline void refuse(const std::string& argument, const std::string& value, const std::string& accepted) {
  throw Error(ErrorCode::invalid_argument, argument + ": " + value + "; accepted: " + accepted);
}

}  // namespace tessera::python
