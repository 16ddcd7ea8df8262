// The support matrix: which Impl takes which feature, in which pass.
#pragma once

#include <string>

namespace tessera::cli {

// As the page of the documentation and as JSON. The same on every machine.
std::string support_markdown();
std::string support_json();

}  // namespace tessera::cli
