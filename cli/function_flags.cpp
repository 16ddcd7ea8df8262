#include "cli/function_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "cli/file_io.h"
#include "cli/flag_values.h"
#include "core/fail.h"

namespace tessera::cli {

namespace {

struct FunctionFile {
  std::string path;
  std::string source;
  std::vector<float> params;
};

std::string text_of(const std::string& path) {
  const std::vector<std::byte> bytes = read_file(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Numbers with commas or white space between.
std::vector<float> numbers_of(std::string text, const std::string& flag) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t' || c == '\r' || c == ' '; }, ',');
  std::vector<float> numbers;
  for (const std::string& word : split(text, ',')) {
    if (word.empty()) {
      continue;
    }
    const auto number = to_float(word);
    if (!number) {
      internal::fail_argument(flag, "'" + word + "' among the parameters",
                              "finite numbers of float32 with commas between");
    }
    numbers.push_back(*number);
  }
  return numbers;
}

// FILE, FILE:N,N,.. or FILE:@FILE.
FunctionFile read_function(const std::string& text, const std::string& flag) {
  FunctionFile result;
  const std::size_t colon = text.rfind(':');
  result.path = text.substr(0, colon);
  result.source = text_of(result.path);
  if (colon != std::string::npos) {
    const std::string params = text.substr(colon + 1);
    result.params = numbers_of(params.starts_with('@') ? text_of(params.substr(1)) : params, flag);
  }
  return result;
}

std::string flag_of(const char* flag, const UserFunction& function) {
  constexpr std::size_t kMostParams = 64;
  if (function.params().size() > kMostParams) {
    return fmt::format(" {} {}:@({} numbers)", flag, function.name(), function.params().size());
  }
  const std::string params = function.params().empty() ? "" : fmt::format(":{}", fmt::join(function.params(), ","));
  return fmt::format(" {} {}{}", flag, function.name(), params);
}

}  // namespace

void FunctionFlags::add(::CLI::App& app, const std::string& mask_group, const std::string& score_group) {
  const auto add_function = [&app](const char* name, const char* description, std::string& target) {
    return add_value(app, name, "FILE[:N,N,..|:@FILE]", description,
                     "a file of C++, and behind a colon its parameters or the file that has them",
                     [&target](const std::string& text) {
                       target = text;
                       return !text.empty() && text.front() != ':';
                     });
  };
  add_function("--mask-function", "a function that says which pairs attend: docs/functions.md", mask_)
      ->group(mask_group);
  add_function("--score-function", "a function of each score, after softcap: docs/functions.md", score_)
      ->group(score_group);
  add_value(app, "--function-start", "B,H,Q,K", "position that the functions see first [0,0,0,0]",
            "four integers from 0 with commas between",
            [this](const std::string& text) {
              const auto parts = split(text, ',');
              int* const starts[] = {&positions_.batch_start, &positions_.head_start, &positions_.query_start,
                                     &positions_.key_start};
              bool good = parts.size() == std::size(starts);
              for (std::size_t n = 0; good && n < parts.size(); ++n) {
                const auto start = to_integer(parts[n]);
                good = start && *start >= 0 && *start < (std::int64_t{1} << 31);
                *starts[n] = good ? static_cast<int>(*start) : 0;
              }
              return good;
            })
      ->group(score_group);
}

void FunctionFlags::apply(Problem& problem) const {
  if (!score_.empty()) {
    FunctionFile file = read_function(score_, "--score-function");
    problem.score_function.emplace(std::move(file.source), std::move(file.params), std::move(file.path));
  }
  if (!mask_.empty()) {
    FunctionFile file = read_function(mask_, "--mask-function");
    problem.mask_function.emplace(std::move(file.source), std::move(file.params), std::move(file.path));
  }
  problem.function_positions = positions_;
}

std::string function_flags(const Problem& problem) {
  std::string flags;
  if (problem.score_function) {
    flags += flag_of("--score-function", *problem.score_function);
  }
  if (problem.mask_function) {
    flags += flag_of("--mask-function", *problem.mask_function);
  }
  const Positions& at = problem.function_positions;
  if (at.batch_start != 0 || at.head_start != 0 || at.query_start != 0 || at.key_start != 0) {
    flags += fmt::format(" --function-start {},{},{},{}", at.batch_start, at.head_start, at.query_start, at.key_start);
  }
  return flags;
}

}  // namespace tessera::cli
