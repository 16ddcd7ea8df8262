#include "cli/flag_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/fail.h"

namespace tessera::cli {

namespace {

template <class T>
std::optional<T> parse_whole(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

// Levenshtein's distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({replaced, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row.back();
}

std::vector<std::string> command_names(const ::CLI::App& app) {
  std::vector<std::string> names;
  for (const ::CLI::App* command : app.get_subcommands({})) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> flag_names(const ::CLI::App& app) {
  std::vector<std::string> names;
  for (const ::CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

// " Did you mean X?", or where nothing is near, all there is if that is short.
std::string hint(const std::string& given, const std::vector<std::string>& names) {
  const auto far = [&](const std::string& name) {
    return std::pair(distance(given, name), std::max(name.size(), given.size()) - std::min(name.size(), given.size()));
  };
  const auto nearest =
      std::min_element(names.begin(), names.end(), [&](const auto& a, const auto& b) { return far(a) < far(b); });
  if (nearest != names.end() && distance(given, *nearest) <= 1 + given.size() / 4) {
    return fmt::format("; did you mean {}?", *nearest);
  }
  return fmt::format("; accepted: {}", fmt::join(names, ", "));
}

std::string describe_extra(const ::CLI::App& app, const std::string& given) {
  const std::string name = given.substr(0, given.find('='));
  if (app.get_parent() == nullptr && !name.starts_with("-")) {
    return fmt::format("unknown command '{}'{}", given, hint(name, command_names(app)));
  }
  if (!name.starts_with("-")) {
    return fmt::format("unexpected argument '{}'; accepted: flags, see --help", given);
  }
  return fmt::format("unknown flag '{}'{}", name, hint(name, flag_names(app)));
}

}  // namespace

BadFlag::BadFlag(const std::string& flag, const std::string& value, const std::string& accepted)
    : ::CLI::ParseError("BadFlag", fmt::format("{}: '{}'; accepted: {}", flag, value, accepted), kBadFlagsStatus) {}

::CLI::Option* add_value(::CLI::App& app, const std::string& names, const std::string& placeholder,
                         const std::string& description, const std::string& accepted,
                         std::function<bool(const std::string&)> parse) {
  const std::string flag = names.substr(0, names.find(','));
  const auto apply = [flag, accepted, parse = std::move(parse)](const std::string& value) {
    if (!parse(value)) {
      throw BadFlag(flag, value, accepted);
    }
  };
  return app.add_option_function<std::string>(names, apply, description)->type_name(placeholder)->take_last();
}

::CLI::Option* add_integer(::CLI::App& app, const std::string& names, const std::string& description,
                           std::int64_t lowest, std::int64_t highest, const std::function<void(std::int64_t)>& set) {
  const bool open = highest == std::numeric_limits<std::int64_t>::max();
  const std::string accepted =
      open ? fmt::format("an integer, {} or more", lowest) : fmt::format("an integer, {} to {}", lowest, highest);
  return add_value(app, names, "N", description, accepted, [=](const std::string& text) {
    const auto value = to_integer(text);
    if (!value || *value < lowest || *value > highest) {
      return false;
    }
    set(*value);
    return true;
  });
}

::CLI::Option* add_number(::CLI::App& app, const std::string& names, const std::string& description,
                          const std::function<void(double)>& set, double lowest) {
  const std::string accepted = std::isinf(lowest) ? "a finite number" : fmt::format("a number of {} or more", lowest);
  return add_value(app, names, "X", description, accepted, [=](const std::string& text) {
    const auto value = to_number(text);
    const bool good = value && *value >= lowest;
    if (good) {
      set(*value);
    }
    return good;
  });
}

::CLI::Option* add_float(::CLI::App& app, const std::string& names, const std::string& description,
                         const std::function<void(float)>& set) {
  return add_value(app, names, "X", description, "a finite number of float32", [=](const std::string& text) {
    const auto value = to_float(text);
    if (value) {
      set(*value);
    }
    return value.has_value();
  });
}

::CLI::Option* add_seed(::CLI::App& app, const std::string& names, const std::string& description,
                        std::uint64_t& seed) {
  return add_value(app, names, "N", description, "an integer, 0 to 2^64 - 1", [&seed](const std::string& text) {
    const auto value = to_seed(text);
    seed = value.value_or(0);
    return value.has_value();
  });
}

::CLI::Option* add_integers(::CLI::App& app, const std::string& names, const std::string& description,
                            std::vector<std::int64_t>& values, std::int64_t lowest) {
  const std::string accepted = fmt::format("integers of {} or more, separated by commas", lowest);
  return add_value(app, names, "N,N,..", description, accepted, [&values, lowest](const std::string& text) {
    values.clear();
    for (const std::string& part : split(text, ',')) {
      values.push_back(to_integer(part).value_or(lowest - 1));
    }
    return std::all_of(values.begin(), values.end(), [lowest](std::int64_t value) { return value >= lowest; });
  });
}

::CLI::Option* add_word(::CLI::App& app, const std::string& names, const std::string& description,
                        const std::vector<std::string>& words, const std::function<void(const std::string&)>& set) {
  return add_value(app, names, fmt::format("{}", fmt::join(words, "|")), description,
                   fmt::format("{}", fmt::join(words, ", ")), [=](const std::string& text) {
                     if (std::find(words.begin(), words.end(), text) == words.end()) {
                       return false;
                     }
                     set(text);
                     return true;
                   });
}

std::optional<std::int64_t> to_integer(std::string_view text) {
  const std::int64_t factor = text.ends_with('K') ? 1 << 10 : text.ends_with('M') ? 1 << 20 : 1;
  const auto number = parse_whole<std::int64_t>(text.substr(0, text.size() - (factor == 1 ? 0 : 1)));
  std::int64_t product = 0;
  return number && !__builtin_mul_overflow(*number, factor, &product) ? std::optional(product) : std::nullopt;
}

std::optional<double> to_number(std::string_view text) {
  const auto value = parse_whole<double>(text);
  return value && std::isfinite(*value) ? value : std::nullopt;
}

std::optional<float> to_float(std::string_view text) {
  const auto value = to_number(text);
  const bool fits = value && std::abs(*value) <= static_cast<double>(std::numeric_limits<float>::max());
  return fits ? std::optional(static_cast<float>(*value)) : std::nullopt;
}

std::optional<std::uint64_t> to_seed(std::string_view text) { return parse_whole<std::uint64_t>(text); }

std::optional<Device> to_device(std::string_view text) {
  constexpr std::string_view kPrefix = "cuda:";
  if (text == "cpu") {
    return Device{};
  }
  if (text == "cuda") {
    return Device{DeviceKind::cuda, 0};
  }
  const auto index = text.starts_with(kPrefix) ? parse_whole<std::int32_t>(text.substr(kPrefix.size())) : std::nullopt;
  return index && *index >= 0 ? std::optional(Device{DeviceKind::cuda, *index}) : std::nullopt;
}

std::string device_text(const Device& device) {
  return device.kind == DeviceKind::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(end + 1);
  }
}

void refuse_given(const ::CLI::App& app, const std::vector<std::string>& flags, const std::string& accepted) {
  for (const std::string& flag : flags) {
    if (app.get_option(flag)->count() > 0) {
      internal::fail_argument(flag, "given", accepted);
    }
  }
}

std::string describe(const ::CLI::App& app, const ::CLI::ParseError& error) {
  // CLI11 misses a command or an operand before it minds the word that stands in its place.
  const std::vector<std::string> extras = app.remaining();
  if (!extras.empty()) {
    return describe_extra(app, extras.front());
  }
  if (dynamic_cast<const ::CLI::RequiredError*>(&error) != nullptr && app.get_parent() == nullptr) {
    return fmt::format("no command; accepted: {}", fmt::join(command_names(app), ", "));
  }
  std::string text = error.what();
  if (dynamic_cast<const ::CLI::ArgumentMismatch*>(&error) != nullptr) {
    return text.substr(0, text.find(':')) + ": no value; accepted: one value, see --help";
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

bool to_lengths(const std::string& text, std::vector<std::int64_t>& lengths) {
  lengths.clear();
  for (const std::string& part : text == "none" ? std::vector<std::string>{} : split(text, ',')) {
    lengths.push_back(to_integer(part).value_or(-1));
  }
  return std::all_of(lengths.begin(), lengths.end(), [](std::int64_t length) { return length >= 0; });
}

std::vector<std::int64_t> cumulative(const std::vector<std::int64_t>& lengths, const char* flag) {
  std::vector<std::int64_t> sums{0};
  for (const std::int64_t length : lengths) {
    sums.push_back(internal::checked_add(sums.back(), length, flag));
  }
  return sums;
}

}  // namespace tessera::cli
