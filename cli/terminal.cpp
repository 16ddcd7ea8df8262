#include "cli/terminal.h"

#include <fmt/format.h>
#include <langinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace tessera::cli {

namespace {

std::string in_colour(const char* code, const std::string& text) {
  return colours() ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
}

// Columns that the text takes: code points, less escape sequences.
std::size_t width(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      i = text.find('m', i);
    } else {
      columns += (static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80U ? 1 : 0;
    }
  }
  return columns;
}

std::string repeated(std::string_view text, std::size_t times) {
  std::string result;
  for (std::size_t i = 0; i < times; ++i) {
    result += text;
  }
  return result;
}

constexpr std::string_view kGap = "  ";

const char* rule() { return unicode() ? "─" : "-"; }

}  // namespace

bool colours() {
  static const bool result = ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  return result;
}

bool unicode() {
  static const bool result = [] {
    const char* locale = std::setlocale(LC_CTYPE, "");
    return locale != nullptr && std::string_view(::nl_langinfo(CODESET)) == "UTF-8";
  }();
  return result;
}

std::string bold(const std::string& text) { return in_colour("1", text); }
std::string green(const std::string& text) { return in_colour("32", text); }
std::string red(const std::string& text) { return in_colour("1;31", text); }
std::string dim(const std::string& text) { return in_colour("2", text); }

// Titles stand in the middle of their columns, between rules.
std::string Table::group_line(const std::vector<std::size_t>& widths) const {
  std::string line;
  std::size_t column = 0;
  for (const Group& group : groups_) {
    for (; column < group.first; ++column) {
      line.append(widths[column] + kGap.size(), ' ');
    }
    std::size_t columns = 0;
    for (; column <= group.last; ++column) {
      columns += widths[column] + kGap.size();
    }
    columns -= kGap.size();
    const std::string title = " " + group.title + " ";
    const std::size_t rules = columns - std::min(columns, width(title));
    line.append(kGap).append(repeated(rule(), rules / 2)).append(title).append(repeated(rule(), rules - rules / 2));
  }
  return line;
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], width(row[column]));
    }
  }
  std::string text = groups_.empty() ? "" : dim(group_line(widths)) + "\n";
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (std::size_t column = 0; column < rows_[r].size(); ++column) {
      const std::string& cell = rows_[r][column];
      const std::string space(widths[column] - width(cell), ' ');
      const bool left = std::find(left_.begin(), left_.end(), column) != left_.end();
      line.append(kGap).append(left ? cell + space : space + cell);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += (r == 0 ? bold(line) : line) + "\n";
    if (r == 0) {
      for (const std::size_t columns : widths) {
        text.append(kGap).append(repeated(rule(), columns));
      }
      text += "\n";
    }
  }
  return text;
}

Progress::Progress(std::int64_t steps) : shown_(::isatty(STDERR_FILENO) == 1), steps_(steps) {}

Progress::~Progress() { clear(); }

void Progress::clear() const {
  if (shown_) {
    fmt::print(stderr, "\r\x1b[K");
  }
}

void Progress::step(std::string_view label, std::int64_t done) {
  constexpr std::size_t kWidth = 30;
  if (!shown_ || steps_ < 1) {
    return;
  }
  const auto filled = static_cast<std::size_t>(done) * kWidth / static_cast<std::size_t>(steps_);
  fmt::print(stderr, "\r\x1b[K  {}{} {}/{}  {}", repeated(unicode() ? "█" : "#", filled),
             repeated(unicode() ? "░" : ".", kWidth - filled), done, steps_, label);
  std::fflush(stderr);
}

std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2, kUnits[unit]);
}

std::string time_text(double seconds) {
  const auto [value, unit] = seconds < 1e-3 ? std::pair{seconds * 1e6, "us"}
                             : seconds < 1  ? std::pair{seconds * 1e3, "ms"}
                                            : std::pair{seconds, "s"};
  return fmt::format("{:.{}f} {}", value, value >= 100 ? 0 : value >= 10 ? 1 : 2, unit);
}

}  // namespace tessera::cli
