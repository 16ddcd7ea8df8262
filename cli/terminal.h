// Tables, colours and progress for terminals; plain text for pipes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::cli {

// Whether stdout is a terminal that takes colours (and NO_COLOR is not set).
bool colours();
// Whether text may hold more than ASCII.
bool unicode();

std::string bold(const std::string& text);
std::string green(const std::string& text);
std::string red(const std::string& text);
std::string dim(const std::string& text);

// Columns as wide as their widest cell, the first aligned left and the others right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  // A title over the columns first .. last.
  void group(std::string title, std::size_t first, std::size_t last) {
    groups_.push_back({std::move(title), first, last});
  }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Aligns this column left as well.
  void align_left(std::size_t column) { left_.push_back(column); }
  std::string text() const;

 private:
  struct Group {
    std::string title;
    std::size_t first;
    std::size_t last;
  };
  std::string group_line(const std::vector<std::size_t>& widths) const;

  std::vector<std::vector<std::string>> rows_;
  std::vector<Group> groups_;
  std::vector<std::size_t> left_{0};
};

// A bar on stderr that is redrawn in place; nothing where stderr is no terminal. It is gone when the object is.
class Progress {
 public:
  explicit Progress(std::int64_t steps);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();
  void step(std::string_view label, std::int64_t done);
  // Takes the bar away, to print something else; the next step draws it again.
  void clear() const;

 private:
  bool shown_;
  std::int64_t steps_;
};

std::string bytes_text(double bytes);
std::string time_text(double seconds);

}  // namespace tessera::cli
