// Bands, alignments, segments, and rows that see nothing.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

using cli::TensorOptions;

void add_bands(std::vector<Case>& cases) {
  const std::int64_t unlimited = Mask::kUnlimited;
  struct Band {
    const char* name;
    std::int64_t left, right;
  };
  const Band bands[] = {{"causal", unlimited, 0},
                        {"anticausal", 0, unlimited},
                        {"diagonal", 0, 0},
                        {"left_5", 5, 0},
                        {"right_5", 0, 5},
                        {"both_16", 16, 16},
                        {"left_64_right_1", 64, 1},
                        {"open_left_40", unlimited, 40},
                        {"open_right_40", 40, unlimited},
                        {"wider_than_all", 500, 500}};
  struct Place {
    const char* name;
    Alignment alignment;
  };
  const Place places[] = {{"bottom_right", Alignment::bottom_right()},
                          {"top_left", Alignment::top_left()},
                          {"before_the_keys", Alignment::at(-30)},
                          {"beyond_the_keys", Alignment::at(90)}};
  for (const Band& band : bands) {
    for (const Place& place : places) {
      for (const bool tall : {false, true}) {
        Case result{
            std::string("band_") + band.name + "_" + place.name + (tall ? "_tall" : "_wide"), base_problem(), {}};
        Problem& problem = result.problem;
        problem.mask = Mask::window(band.left, band.right, place.alignment);
        problem.batch = problem.heads_q = problem.heads_kv = 1;
        problem.dim_qk = problem.dim_v = 16;
        problem.seq_q = tall ? 201 : 75;
        problem.seq_k = tall ? 75 : 201;
        result.tensors.dlse = true;
        cases.push_back(result);
      }
    }
  }
}

std::vector<std::int32_t> documents(std::initializer_list<std::pair<std::int32_t, int>> runs) {
  std::vector<std::int32_t> ids;
  for (const auto& [id, count] : runs) {
    ids.insert(ids.end(), static_cast<std::size_t>(count), id);
  }
  return ids;
}

// Two sequences of 75 queries and 101 keys.
Segments packed_documents() {
  return {documents({{0, 30}, {1, 1}, {2, 44}, {5, 70}, {9, 5}}),
          documents({{0, 50}, {1, 20}, {2, 31}, {4, 1}, {5, 90}, {9, 10}})};
}

}  // namespace

std::vector<Case> mask_cases() {
  std::vector<Case> cases;
  add_bands(cases);
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case(std::move(name), change));
  };
  add("segments", [](Problem& p, TensorOptions&) { p.mask = Mask::segments(packed_documents()); });
  add("segments_causal",
      [](Problem& p, TensorOptions&) { p.mask = Mask::segments(packed_documents()) & Mask::causal(); });
  add("segments_window", [](Problem& p, TensorOptions&) {
    p.mask = Mask::segments(packed_documents()) & Mask::window(20, 3, Alignment::top_left());
  });
  add("segments_without_keys", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::segments({documents({{0, 20}, {1, 55}, {1, 75}}), documents({{0, 101}, {0, 60}, {1, 41}})});
    o.dlse = true;
  });
  add("segments_with_nothing_in_common", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::segments({documents({{0, 150}}), documents({{1, 202}})});
    o.dlse = true;
  });
  add("segments_of_one_token", [](Problem& p, TensorOptions&) {
    Segments each;
    for (int n = 0; n < 2 * 75; ++n) each.query.push_back(n % 75);
    for (int n = 0; n < 2 * 101; ++n) each.key.push_back(n % 101);
    p.mask = Mask::segments(each);
  });
  add("rows_that_see_nothing", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::causal();
    p.seq_q = 140;
    p.seq_k = 20;
    o.dlse = true;
  });
  add("no_row_sees_anything", [](Problem& p, TensorOptions& o) {
    p.mask = Mask::causal(Alignment::at(-75));
    o.dlse = true;
  });
  add("key_lengths", [](Problem& p, TensorOptions&) { p.key_lengths = {101, 33}; });
  add("key_lengths_zero_and_one", [](Problem& p, TensorOptions& o) {
    p.key_lengths = {0, 1};
    o.dlse = true;
  });
  add("key_lengths_causal", [](Problem& p, TensorOptions&) {
    p.key_lengths = {64, 20};
    p.mask = Mask::causal();
  });
  add("key_lengths_segments", [](Problem& p, TensorOptions&) {
    p.key_lengths = {97, 64};
    p.mask = Mask::segments(packed_documents());
  });
  return cases;
}

}  // namespace tessera::test
