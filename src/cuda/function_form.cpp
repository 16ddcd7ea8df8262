#include "cuda/function_form.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

namespace tessera::internal {

namespace {

using Tokens = std::vector<std::string_view>;

bool is_of_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// Names, numbers and single characters.
Tokens tokens_of(std::string_view code) {
  Tokens tokens;
  for (std::size_t at = 0; at < code.size();) {
    std::size_t end = at + 1;
    while (is_of_name(code[at]) && end < code.size() && is_of_name(code[end])) {
      ++end;
    }
    if (std::isspace(static_cast<unsigned char>(code[at])) == 0) {
      tokens.push_back(code.substr(at, end - at));
    }
    at = end;
  }
  return tokens;
}

// Whether nothing up to the end of the statement binds less than a sum, outside of parentheses.
bool is_term(Tokens::const_iterator token, Tokens::const_iterator last) {
  constexpr std::array<std::string_view, 6> kWords{"and", "or", "xor", "bitand", "bitor", "not_eq"};
  int depth = 0;
  for (; token != last && *token != ";"; ++token) {
    depth += *token == "(" || *token == "[" ? 1 : *token == ")" || *token == "]" ? -1 : 0;
    if (depth == 0 && (std::string_view("?<>=!&|^,{}").find(*token) != std::string_view::npos ||
                       std::find(kWords.begin(), kWords.end(), *token) != kWords.end())) {
      return false;
    }
  }
  return token != last;
}

bool adds_to_score(std::string_view code, const Tokens& tokens) {
  const auto count = [&](std::string_view token) { return std::count(tokens.begin(), tokens.end(), token); };
  const auto function = std::find(tokens.begin(), tokens.end(), "score");
  const auto comma = std::find(function, tokens.end(), ",");
  const auto exit = std::find(tokens.begin(), tokens.end(), "return");
  // Macros and texts may hide anything.
  if (comma == tokens.end() || code.find_first_of("#\\\"'") != std::string_view::npos || tokens.end() - exit < 4) {
    return false;
  }
  const std::string_view score = *(comma - 1);
  const std::string_view sign = exit[2];
  const bool is_sum =
      exit[1] == score && (sign == "+" || sign == "-") && exit[3] != sign && exit[3] != "=" && exit[3] != ">";
  return is_sum && is_of_name(score[0]) && count(score) == 2 && count("return") == 1 && is_term(exit + 3, tokens.end());
}

}  // namespace

FunctionForm form_of(std::string_view code) {
  const Tokens tokens = tokens_of(code);
  const auto names = [&](std::string_view token) {
    return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
  };
  return {adds_to_score(code, tokens), names("query") || names("key")};
}

}  // namespace tessera::internal
