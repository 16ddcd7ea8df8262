#include "cli/mask_flags.h"

#include <fmt/format.h>

#include <utility>

#include "cli/flag_values.h"
#include "core/fail.h"

namespace tessera::cli {

namespace {

using internal::fail_argument;

// "inf" or an integer from 0.
std::optional<std::int64_t> to_side(const std::string& text) {
  if (text == "inf") {
    return Mask::kUnlimited;
  }
  const auto value = to_integer(text);
  return value && *value >= 0 ? value : std::nullopt;
}

std::optional<Alignment> to_alignment(const std::string& text) {
  if (text == "bottom-right") {
    return Alignment::bottom_right();
  }
  if (text == "top-left") {
    return Alignment::top_left();
  }
  const auto diagonal = to_integer(text);
  return diagonal ? std::optional(Alignment::at(*diagonal)) : std::nullopt;
}

bool to_documents(const std::string& text, std::vector<std::vector<std::int64_t>>& documents) {
  documents.clear();
  const std::vector<std::string> sequences = split(text, '/');
  return std::all_of(sequences.begin(), sequences.end(),
                     [&](const std::string& sequence) { return to_lengths(sequence, documents.emplace_back()); });
}

// Document numbers of every token. One list of lengths serves every sequence.
std::vector<std::int32_t> document_ids(const Problem& problem, const std::vector<std::vector<std::int64_t>>& documents,
                                       const char* flag, bool query_side) {
  if (documents.size() != 1 && static_cast<std::int64_t>(documents.size()) != problem.batch) {
    fail_argument(flag, fmt::format("{} lists", documents.size()),
                  fmt::format("one list for all sequences, or one for each of the {}", problem.batch));
  }
  std::vector<std::int32_t> ids;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const auto row = static_cast<std::size_t>(b);
    const auto& lengths = documents[documents.size() == 1 ? 0 : row];
    const std::int64_t tokens = query_side ? problem.sequence(b).queries : stored_keys(problem, row);
    const std::int64_t total = cumulative(lengths, flag).back();
    if (total != tokens) {
      fail_argument(flag, fmt::format("{} of {} tokens", fmt::join(lengths, ","), total),
                    fmt::format("lengths that add up to those of the sequence, {}", tokens));
    }
    for (std::size_t document = 0; document < lengths.size(); ++document) {
      ids.insert(ids.end(), static_cast<std::size_t>(lengths[document]), static_cast<std::int32_t>(document));
    }
  }
  return ids;
}

}  // namespace

void MaskFlags::add(::CLI::App& app, const char* group) {
  add_value(app, "--mask", "M,M,..",
            "which keys a query sees: none, causal, causal-top-left or block patterns (butterfly, random:0.125, ..); "
            "of several, each has to admit a key [none]",
            "with commas between: none, causal, causal-top-left, " + block_pattern_forms(),
            [this](const std::string& text) { return parse(text); })
      ->group(group);
  add_value(app, "--blocks", "x./.x",
            "blocks drawn row by row: x kept, . dropped; heads separated by commas, sequences by +",
            "rows of x and . separated by slashes, heads by commas, sequences by +",
            [this](const std::string& text) {
              drawn_blocks_ = text;
              return !text.empty() && is_drawn_blocks(text);
            })
      ->group(group);
  add_value(app, "--block-size", "Q[,K]", "queries and keys of a block [128,128]",
            "one or two multiples of 16, with a comma between",
            [this](const std::string& text) {
              const auto sizes = split(text, ',');
              block_q_ = to_integer(sizes.front()).value_or(0);
              block_k_ = to_integer(sizes.back()).value_or(0);
              return sizes.size() <= 2 && block_q_ > 0 && block_k_ > 0 && block_q_ % 16 == 0 && block_k_ % 16 == 0;
            })
      ->group(group);
  add_value(app, "--window", "L,R", "keys from L before the query to R after it; a side may be inf",
            "two integers from 0, or inf, with a comma between",
            [this](const std::string& text) {
              const auto sides = split(text, ',');
              const auto left = to_side(sides.front());
              const auto right = to_side(sides.back());
              left_ = left.value_or(0);
              right_ = right.value_or(0);
              return sides.size() == 2 && left && right;
            })
      ->group(group);
  add_value(app, "--alignment", "bottom-right|top-left|N",
            "the key position of query 0, by rule or number [bottom-right]",
            "bottom-right, top-left, or the key position of query 0",
            [this](const std::string& text) {
              alignment_ = to_alignment(text);
              return alignment_.has_value();
            })
      ->group(group);
  const auto documents = [&](const char* name, const char* description, auto& target) {
    add_value(app, name, "N,N../N,..", description, "lengths separated by commas, sequences by slashes",
              [&target](const std::string& text) { return to_documents(text, target); })
        ->group(group);
  };
  documents("--segments", "packed documents, by length; sequences separated by /", documents_);
  documents("--segments-k", "the same for the keys [as --segments]", documents_k_);
}

bool MaskFlags::parse(const std::string& text) {
  band_ = "none";
  patterns_.clear();
  for (const std::string& word : split(text, ',')) {
    if (word == "causal" || word == "causal-top-left") {
      band_ = word;
    } else if (auto pattern = to_block_pattern(word)) {
      patterns_.push_back(std::move(*pattern));
    } else if (word != "none") {
      return false;
    }
  }
  return true;
}

Alignment MaskFlags::alignment() const {
  if (band_ != "causal-top-left") {
    return alignment_.value_or(Alignment::bottom_right());
  }
  if (alignment_ && *alignment_ != Alignment::top_left()) {
    fail_argument("--alignment", "another than that of --mask causal-top-left", "top-left");
  }
  return Alignment::top_left();
}

Mask MaskFlags::mask(const Problem& problem) const {
  Mask result = Mask::window(left_, band_ == "none" ? right_ : 0, alignment());
  if (const auto kept = blocks(problem)) {
    result = (result & Mask::blocks(*kept)).with_alignment(alignment());
  }
  if (documents_.empty()) {
    if (!documents_k_.empty()) {
      fail_argument("--segments-k", "given alone", "with --segments");
    }
    return result;
  }
  Segments segments;
  segments.query = document_ids(problem, documents_, "--segments", true);
  segments.key = documents_k_.empty() ? document_ids(problem, documents_, "--segments (of the keys)", false)
                                      : document_ids(problem, documents_k_, "--segments-k", false);
  return (result & Mask::segments(std::move(segments))).with_alignment(alignment());
}

std::optional<BlockMask> MaskFlags::blocks(const Problem& problem) const {
  const BlockGrid grid = this->grid(problem);
  std::optional<BlockMask> result;
  const auto add = [&](const BlockMask& mask) { result = result ? *result & mask : mask; };
  for (const BlockPatternMaker& pattern : patterns_) {
    add(pattern(grid));
  }
  if (!drawn_blocks_.empty()) {
    add(drawn_blocks(grid, drawn_blocks_));
  }
  return result;
}

}  // namespace tessera::cli
