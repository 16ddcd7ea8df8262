#include "cuda/function_source.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <span>
#include <string_view>

#include "core/sha256.h"
#include "cuda/function_form.h"
#include "function/source.h"

namespace tessera::internal {

namespace {

// Bits of a score that count: see TESSERA_FUNCTION_BITS in function_support.h.
std::string significant_bits(DType dtype) {
  return dtype == DType::bfloat16 ? "8" : dtype == DType::float16 ? "11" : "24";
}

std::string without_comments(std::string_view source) {
  std::string code;
  for (std::size_t at = 0; at < source.size(); ++at) {
    const std::string_view rest = source.substr(at);
    if (rest.starts_with("//") || rest.starts_with("/*")) {
      const std::size_t end = rest.starts_with("//") ? rest.find('\n') : rest.find("*/", 2);
      if (end == std::string_view::npos) {
        break;
      }
      at += rest.starts_with("//") ? end : end + 1;
      code += ' ';
    } else {
      code += source[at];
    }
  }
  return code;
}

bool has_word_of(const std::string& code, std::span<const std::string_view> words) {
  const auto ends_word = [](unsigned char c) { return std::isalnum(c) == 0 && c != '_'; };
  for (auto begin = code.begin(); begin != code.end();) {
    const auto end = std::find_if(begin, code.end(), ends_word);
    if (std::find(words.begin(), words.end(), std::string_view(begin, end)) != words.end()) {
      return true;
    }
    begin = end == code.end() ? end : end + 1;
  }
  return false;
}

// Whether to call the function, not to inline it: one of 400 characters that is inlined into the hundred places of a kernel takes
// seconds to compile, and loops, which are unrolled there, and functions of whole angles minutes.
bool is_long(const std::string& code) {
  constexpr std::ptrdiff_t kMostCharacters = 400;
  constexpr std::array<std::string_view, 5> kLongWords{"for", "while", "sin", "cos", "pow"};
  const auto is_visible = [](unsigned char c) { return std::isspace(c) == 0; };
  return has_word_of(code, kLongWords) || std::count_if(code.begin(), code.end(), is_visible) > kMostCharacters;
}

// Whether T may be a type that stands in for float, see scaled.cuh: code that names the dual numbers may have overloads for them.
bool is_generic(const std::string& code) {
  constexpr std::array<std::string_view, 1> kDual{"Dual"};
  return !has_word_of(code, kDual);
}

}  // namespace

std::string function_source(const Problem& problem) {
  if (!problem.score_function) {
    return "";
  }
  const std::string code = without_comments(problem.score_function->source());
  const FunctionForm form = form_of(code);
  const auto define = [](const std::string& name, const std::string& value) {
    return "#define TESSERA_FUNCTION_" + name + " " + value + "\n";
  };
  const auto flag = [](bool value) { return std::string(value ? "1" : "0"); };
  return define("ADDS", flag(form.adds)) + define("NAMES_POSITIONS", flag(form.names_positions)) +
         define("BITS", significant_bits(problem.dtype)) + define("IS_LONG", flag(is_long(code))) +
         define("IS_GENERIC", flag(is_generic(code))) + "#include \"tessera/function_support.h\"\n" +
         wrapped_source(*problem.score_function) + "#line 1 \"kernel.cu\"\n#include \"cuda/tile/function_call.cuh\"\n";
}

std::string function_suffix(const Problem& problem) {
  if (!problem.score_function) {
    return "";
  }
  Sha256 digest;
  digest.add(function_source(problem));
  return "_function_" + hex(digest.finish()).substr(0, 16);
}

}  // namespace tessera::internal
