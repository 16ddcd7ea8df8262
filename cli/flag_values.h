// Flags whose errors are one line: the flag, the value it got, the values it takes.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/types.h"

namespace tessera::cli {

// "--heads: '0'; accepted: 1 or more". Bad flags end the program with kBadFlagsStatus.
class BadFlag : public ::CLI::ParseError {
 public:
  BadFlag(const std::string& flag, const std::string& value, const std::string& accepted);
};
inline constexpr int kBadFlagsStatus = 2;

// A flag with one value. `parse` returns false for a value that is not accepted. The last of several wins.
::CLI::Option* add_value(::CLI::App& app, const std::string& names, const std::string& placeholder,
                         const std::string& description, const std::string& accepted,
                         std::function<bool(const std::string&)> parse);

// An integer within [lowest, highest].
::CLI::Option* add_integer(::CLI::App& app, const std::string& names, const std::string& description,
                           std::int64_t lowest, std::int64_t highest, const std::function<void(std::int64_t)>& set);
// A finite number, of `lowest` or more.
::CLI::Option* add_number(::CLI::App& app, const std::string& names, const std::string& description,
                          const std::function<void(double)>& set,
                          double lowest = -std::numeric_limits<double>::infinity());
// A finite number of float32.
::CLI::Option* add_float(::CLI::App& app, const std::string& names, const std::string& description,
                         const std::function<void(float)>& set);
// An integer of 64 bits without a sign.
::CLI::Option* add_seed(::CLI::App& app, const std::string& names, const std::string& description, std::uint64_t& seed);
// Integers from 0, separated by commas.
::CLI::Option* add_integers(::CLI::App& app, const std::string& names, const std::string& description,
                            std::vector<std::int64_t>& values, std::int64_t lowest = 0);
// One of several words.
::CLI::Option* add_word(::CLI::App& app, const std::string& names, const std::string& description,
                        const std::vector<std::string>& words, const std::function<void(const std::string&)>& set);

// nullopt unless the whole text is a number. Integers may end in K or M: 16K is 16384.
std::optional<std::int64_t> to_integer(std::string_view text);
std::optional<double> to_number(std::string_view text);
// A number that float32 has; it may be rounded, and is not infinite.
std::optional<float> to_float(std::string_view text);
std::optional<std::uint64_t> to_seed(std::string_view text);
// "cpu", "cuda" (the first device) or "cuda:N".
std::optional<Device> to_device(std::string_view text);
// "cpu" or "cuda:N".
std::string device_text(const Device& device);
std::vector<std::string> split(std::string_view text, char separator);

// Throws Error for the first of these flags that the command line has given.
void refuse_given(const ::CLI::App& app, const std::vector<std::string>& flags, const std::string& accepted);

// One line for any error of the command line: names the flag and, where it was mistyped, the nearest one.
std::string describe(const ::CLI::App& app, const ::CLI::ParseError& error);

// "none" is the list of no lengths; whether all of them are integers from 0.
bool to_lengths(const std::string& text, std::vector<std::int64_t>& lengths);
// 0, and where each of these lengths ends. Throws Error, naming `flag`, for a sum beyond 64 bits.
std::vector<std::int64_t> cumulative(const std::vector<std::int64_t>& lengths, const char* flag);

}  // namespace tessera::cli
