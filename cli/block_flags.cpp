#include "cli/block_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "cli/flag_values.h"
#include "core/fail.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

// What stands behind the name of a pattern. A word that is not the number that is wanted there throws Error.
class Parameters {
 public:
  explicit Parameters(std::vector<std::string> words) : words_(std::move(words)) {}

  std::int64_t integer(std::size_t n, std::int64_t otherwise = 0) const {
    return n < words_.size() ? read(n, to_integer(words_[n]), "an integer") : otherwise;
  }
  std::uint64_t seed(std::size_t n) const {
    return n < words_.size() ? read(n, to_seed(words_[n]), "an integer, 0 to 2^64 - 1") : 0;
  }
  double number(std::size_t n) const { return read(n, to_number(words_[n]), "a finite number"); }

 private:
  template <class T>
  T read(std::size_t n, const std::optional<T>& value, std::string_view accepted) const {
    if (!value) {
      internal::fail_argument("parameter", words_[n], accepted);
    }
    return *value;
  }

  std::vector<std::string> words_;
};

struct Form {
  const char* name;
  const char* parameters;
  std::size_t least, most;  // parameters
  BlockMask (*make)(const BlockGrid&, const Parameters&);
};

const std::array<Form, 8> kForms{{
    {"butterfly", "[:DISTANCE]", 0, 1,
     [](const BlockGrid& grid, const Parameters& of) { return block_patterns::butterfly(grid, of.integer(0)); }},
    {"local", ":DISTANCE", 1, 1,
     [](const BlockGrid& grid, const Parameters& of) { return block_patterns::local(grid, of.integer(0)); }},
    {"strided", ":STRIDE", 1, 1,
     [](const BlockGrid& grid, const Parameters& of) { return block_patterns::strided(grid, of.integer(0)); }},
    {"fixed", ":STRIDE[:SUMMARY]", 1, 2,
     [](const BlockGrid& grid, const Parameters& of) {
       return block_patterns::fixed(grid, of.integer(0), of.integer(1, 1));
     }},
    {"sliding-window-global", ":WINDOW[:GLOBAL]", 1, 2,
     [](const BlockGrid& grid, const Parameters& of) {
       return block_patterns::sliding_window_global(grid, of.integer(0), of.integer(1, 1));
     }},
    {"bigbird", ":WINDOW:GLOBAL:RANDOM[:SEED]", 3, 4,
     [](const BlockGrid& grid, const Parameters& of) {
       return block_patterns::bigbird(grid, of.integer(0), of.integer(1), of.integer(2), of.seed(3));
     }},
    {"random", ":DENSITY[:SEED]", 1, 2,
     [](const BlockGrid& grid, const Parameters& of) {
       return block_patterns::random(grid, of.number(0), of.seed(1));
     }},
    {"lower-triangular", "", 0, 0,
     [](const BlockGrid& grid, const Parameters& /*of*/) { return block_patterns::lower_triangular(grid); }},
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
  return [form, words](const BlockGrid& grid) {
    try {
      return form->make(grid, Parameters({words.begin() + 1, words.end()}));
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("--mask: '{}': {}", fmt::join(words, ":"), error.what()));
    }
  };
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
