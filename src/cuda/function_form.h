// What the text of a user's score function says of it, by which kernels are compiled. Whatever is not of a form that is known is
// taken for the most general one.
#pragma once

#include <string_view>

namespace tessera::internal {

struct FunctionForm {
  // It is a score plus or minus what does not depend on it: its only `return` is `return s + ...;` or `return s - ...;`, and the
  // score is named nowhere else. Its derivative is 1, and LSE can be subtracted before it.
  bool adds = false;
  // It names positions, and not distances alone.
  bool names_positions = false;
};

// `code` has no comments.
FunctionForm form_of(std::string_view code);

}  // namespace tessera::internal
