// The text that compilers get for a function that a user has written.
#pragma once

#include <string>
#include <string_view>

#include "tessera/score_function.h"

namespace tessera::internal {

// Of tessera/function_support.h.
std::string_view function_support_text();

// The user's source in namespace tessera::math::user, behind a #line with the function's name, so that errors have the numbers
// of the user's lines. What includes it has to come after function_support.h.
std::string wrapped_source(const UserFunction& function);

}  // namespace tessera::internal
