#include "cli/support.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "api/implementations.h"
#include "plan/support.h"

namespace tessera::cli {

namespace {

constexpr std::string_view kIntroduction = R"(# What each Impl takes

Written by `tessera info --support markdown`; a test compares this page with what the Impls say. Each row is one problem (bfloat16,
16 queries, 256 keys, 4 heads of 64 columns) with the feature of the row beside. A plan takes the first Impl, from the left, that
takes the problem and runs on the device; `tessera explain` says why the ones before it refused. The page tells what an Impl is
made for: a build with few kernels (docs/building.md), a machine on which none can be compiled (docs/programs.md) or a device with
little shared memory may lack a kernel for it.

)";

// One pass of one Impl.
struct Column {
  const internal::Impl* impl;
  Pass pass;
};

bool takes_anything(const Column& column, const std::vector<internal::SupportFeature>& features) {
  return std::any_of(features.begin(), features.end(), [&](const internal::SupportFeature& feature) {
    return feature.has(column.pass) && !internal::support_refusal(*column.impl, feature, column.pass);
  });
}

std::vector<Column> columns_of(const std::vector<internal::SupportFeature>& features) {
  std::vector<Column> columns;
  for (const internal::Impl* impl : internal::all_implementations()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      if (takes_anything({impl, pass}, features)) {
        columns.push_back({impl, pass});
      }
    }
  }
  return columns;
}

// Reasons by number, in the order in which they come up.
class Footnotes {
 public:
  std::size_t number(const std::string& text) {
    const auto found = std::find(texts_.begin(), texts_.end(), text);
    if (found != texts_.end()) {
      return static_cast<std::size_t>(found - texts_.begin()) + 1;
    }
    texts_.push_back(text);
    return texts_.size();
  }
  std::string text() const {
    std::string text;
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      text += fmt::format("{}. {}\n", i + 1, texts_[i]);
    }
    return text;
  }

 private:
  std::vector<std::string> texts_;
};

std::string cell(const Column& column, const internal::SupportFeature& feature, Footnotes& notes) {
  if (!feature.has(column.pass)) {
    return "–";
  }
  const auto refusal = internal::support_refusal(*column.impl, feature, column.pass);
  return refusal ? fmt::format("no ({})", notes.number(fmt::format("`{}` {}", column.impl->name(), *refusal))) : "yes";
}

std::string table(const std::vector<Column>& columns, const std::vector<internal::SupportFeature>& features,
                  Footnotes& notes) {
  std::string head = "|";
  std::string rule = "|---|";
  for (const Column& column : columns) {
    head += fmt::format(" | {} {}", column.impl->name(), pass_name(column.pass));
    rule += "---|";
  }
  std::string text = head + " |\n" + rule + "\n";
  std::string_view group;
  for (const internal::SupportFeature& feature : features) {
    if (feature.group != group) {
      group = feature.group;
      text += fmt::format("| **{}** |", group);
      for (std::size_t i = 0; i < columns.size(); ++i) {
        text += " |";
      }
      text += "\n";
    }
    text += fmt::format("| {}", feature.name);
    for (const Column& column : columns) {
      text += " | " + cell(column, feature, notes);
    }
    text += " |\n";
  }
  return text;
}

}  // namespace

std::string support_markdown() {
  const std::vector<internal::SupportFeature> features = internal::support_features();
  std::string text(kIntroduction);
  for (const internal::Impl* impl : internal::all_implementations()) {
    text += fmt::format("- `{}`: {}\n", impl->name(), impl->summary());
  }
  Footnotes notes;
  text += "\n" + table(columns_of(features), features, notes);
  return text + "\nWhere the answer is no, and `–` stands for a pass that has no such thing:\n\n" + notes.text();
}

std::string support_json() {
  const std::vector<internal::SupportFeature> features = internal::support_features();
  const std::vector<Column> columns = columns_of(features);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const internal::SupportFeature& feature : features) {
    nlohmann::ordered_json answers = nlohmann::ordered_json::object();
    for (const Column& column : columns) {
      if (feature.has(column.pass)) {
        const auto refusal = internal::support_refusal(*column.impl, feature, column.pass);
        nlohmann::ordered_json answer{{"takes", !refusal}};
        if (refusal) {
          answer["reason"] = *refusal;
        }
        answers[std::string(column.impl->name())][std::string(pass_name(column.pass))] = answer;
      }
    }
    rows.push_back({{"group", feature.group}, {"feature", feature.name}, {"impls", answers}});
  }
  return rows.dump(2) + "\n";
}

}  // namespace tessera::cli
