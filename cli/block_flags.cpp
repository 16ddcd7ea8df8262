#include "cli/block_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cli/flag_values.h"
#include "core/fail.h"

namespace tessera::cli {

namespace {

using Numbers = std::vector<double>;

std::int64_t integer(const Numbers& numbers, std::size_t n, std::int64_t otherwise = 0) {
  return n < numbers.size() ? std::llround(numbers[n]) : otherwise;
}

struct Form {
  const char* name;
  const char* parameters;
  std::size_t least, most;  // parameters
  BlockMask (*make)(const BlockGrid&, const Numbers&);
};

const std::array<Form, 8> kForms{{
    {"butterfly", "[:DISTANCE]", 0, 1,
     [](const BlockGrid& grid, const Numbers& n) { return block_patterns::butterfly(grid, integer(n, 0)); }},
    {"local", ":DISTANCE", 1, 1,
     [](const BlockGrid& grid, const Numbers& n) { return block_patterns::local(grid, integer(n, 0)); }},
    {"strided", ":STRIDE", 1, 1,
     [](const BlockGrid& grid, const Numbers& n) { return block_patterns::strided(grid, integer(n, 0)); }},
    {"fixed", ":STRIDE[:SUMMARY]", 1, 2,
     [](const BlockGrid& grid, const Numbers& n) {
       return block_patterns::fixed(grid, integer(n, 0), integer(n, 1, 1));
     }},
    {"sliding-window-global", ":WINDOW[:GLOBAL]", 1, 2,
     [](const BlockGrid& grid, const Numbers& n) {
       return block_patterns::sliding_window_global(grid, integer(n, 0), integer(n, 1, 1));
     }},
    {"bigbird", ":WINDOW:GLOBAL:RANDOM[:SEED]", 3, 4,
     [](const BlockGrid& grid, const Numbers& n) {
       return block_patterns::bigbird(grid, integer(n, 0), integer(n, 1), integer(n, 2),
                                      static_cast<std::uint64_t>(integer(n, 3)));
     }},
    {"random", ":DENSITY[:SEED]", 1, 2,
     [](const BlockGrid& grid, const Numbers& n) {
       return block_patterns::random(grid, n[0], static_cast<std::uint64_t>(integer(n, 1)));
     }},
    {"lower-triangular", "", 0, 0,
     [](const BlockGrid& grid, const Numbers& /*n*/) { return block_patterns::lower_triangular(grid); }},
}};

constexpr char kKept = 'x';
constexpr char kDropped = '.';

BlockMask drawn_pattern(const BlockGrid& grid, const std::string& text) {
  const std::vector<std::string> rows = grid.rows() == 0 ? std::vector<std::string>{} : split(text, '/');
  const auto columns = static_cast<std::size_t>(grid.columns());
  const bool fits = static_cast<std::int64_t>(rows.size()) == grid.rows() &&
                    std::all_of(rows.begin(), rows.end(), [&](const auto& row) { return row.size() == columns; });
  if (!fits) {
    internal::fail_argument("--blocks", text,
                            fmt::format("{} rows of {} blocks, for lengths {} and {} in blocks of {} and {}",
                                        grid.rows(), columns, grid.queries, grid.keys, grid.block_q, grid.block_k));
  }
  return BlockMask::from_function(grid, [&](std::int64_t row, std::int64_t column) {
    return rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)] == kKept;
  });
}

}  // namespace

std::optional<BlockPatternMaker> to_block_pattern(std::string_view text) {
  const std::vector<std::string> words = split(text, ':');
  const auto form = std::find_if(kForms.begin(), kForms.end(), [&](const Form& f) { return f.name == words.front(); });
  if (form == kForms.end() || words.size() - 1 < form->least || words.size() - 1 > form->most) {
    return std::nullopt;
  }
  Numbers numbers;
  for (std::size_t n = 1; n < words.size(); ++n) {
    const auto number = to_number(words[n]);
    if (!number) {
      return std::nullopt;
    }
    numbers.push_back(*number);
  }
  return [make = form->make, numbers](const BlockGrid& grid) { return make(grid, numbers); };
}

std::string block_pattern_forms() {
  std::string text;
  for (const Form& form : kForms) {
    text += fmt::format("{}{}{}", text.empty() ? "" : ", ", form.name, form.parameters);
  }
  return text;
}

bool is_drawn_blocks(std::string_view text) { return text.find_first_not_of("x./,+") == std::string_view::npos; }

BlockMask drawn_blocks(const BlockGrid& grid, std::string_view text) {
  std::vector<BlockMask> sequences;
  for (const std::string& sequence : split(text, '+')) {
    std::vector<BlockMask> heads;
    for (const std::string& head : split(sequence, ',')) {
      heads.push_back(drawn_pattern(grid, head));
    }
    sequences.push_back(BlockMask::over_heads(heads));
  }
  return BlockMask::over_batch(sequences);
}

std::string to_drawing(const BlockMask& mask) {
  std::string text;
  for (std::int64_t pattern = 0; pattern < mask.patterns(); ++pattern) {
    text += pattern == 0 ? "" : pattern % mask.heads() == 0 ? "+" : ",";
    for (std::int64_t row = 0; row < mask.grid().rows(); ++row) {
      std::string line(static_cast<std::size_t>(mask.grid().columns()), kDropped);
      for (const TileVisit& block : mask.row(pattern, row)) {
        line[static_cast<std::size_t>(block.index)] = kKept;
      }
      text += (row == 0 ? "" : "/") + line;
    }
  }
  return text;
}

}  // namespace tessera::cli
