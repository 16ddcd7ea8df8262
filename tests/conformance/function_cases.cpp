// Score functions and mask functions, alone and with what stands before and after them.
#include "conformance/cases.h"
#include "support/functions.h"

namespace tessera::test {

namespace {

using cli::TensorOptions;

// Documents of two sequences of 90 tokens.
std::vector<float> documents() {
  std::vector<float> params{90};
  for (int token = 0; token < 90; ++token) params.push_back(static_cast<float>(token / 37));
  for (int token = 0; token < 90; ++token) params.push_back(static_cast<float>(token % 5));
  return params;
}

void add_score_functions(std::vector<Case>& cases) {
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case("score_function_" + std::move(name), change));
  };
  add("soft_cap", [](Problem& p, TensorOptions&) { p.score_function = capped({1.5F}); });
  add("soft_cap_bfloat16", [](Problem& p, TensorOptions&) {
    p.score_function = capped({1.5F});
    p.dtype = DType::bfloat16;
  });
  add("after_softcap_causal", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.5F});
    p.softcap = 2.0F;
    p.mask = Mask::causal();
  });
  add("before_bias_and_alibi", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.5F});
    p.bias_shape = {{1, 2, 75, 101}};
    p.alibi = true;
  });
  add("relative_bias_grouped", [](Problem& p, TensorOptions&) {
    p.heads_q = 6;
    p.score_function = relative_bias(relative_bias_params(6));
  });
  add("dropout_sinks", [](Problem& p, TensorOptions& o) {
    p.score_function = gated_distance({0.5F});
    p.dropout = {0.25, 4, 0, 0, 0, 0};
    p.sinks = o.dlse = true;
  });
  add("negative_scale", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.5F});
    p.scale = -0.3F;
  });
  add("hides", [](Problem& p, TensorOptions&) { p.score_function = nearby({20}); });
  add("hides_whole_rows", [](Problem& p, TensorOptions& o) {
    p.score_function = nearby({20});
    p.seq_k = 30;
    o.dlse = true;
  });
  add("ragged", [](Problem& p, TensorOptions&) {
    p.score_function = relative_bias(relative_bias_params(2));
    set_ragged(p, {0, 75, 75, 112}, {0, 101, 110, 160});
  });
  add("key_lengths_segments", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.5F});
    p.key_lengths = {101, 33};
    p.mask = Mask::segments({std::vector<std::int32_t>(150, 1), std::vector<std::int32_t>(202, 1)});
  });
  add("part_of_a_whole", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.5F});
    p.function_positions = {1, 3, 1000, 500, 2, 3};
  });
  add("head_dim_128_float16", [](Problem& p, TensorOptions&) {
    p.score_function = gated_distance({0.25F});
    p.dim_qk = p.dim_v = 128;
    p.dtype = DType::float16;
    p.mask = Mask::causal();
  });
}

void add_mask_functions(std::vector<Case>& cases) {
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case("mask_function_" + std::move(name), change));
  };
  add("dilated", [](Problem& p, TensorOptions& o) {
    p.mask_function = dilated({3, 40});
    p.seq_q = p.seq_k = 200;
    o.dlse = true;
  });
  add("documents_causal", [](Problem& p, TensorOptions&) {
    p.mask_function = same_document(documents());
    p.seq_q = p.seq_k = 90;
    p.mask = Mask::causal();
  });
  add("of_heads_grouped", [](Problem& p, TensorOptions&) {
    p.heads_q = 6;
    p.mask_function = striped_heads();
  });
  add("ragged", [](Problem& p, TensorOptions&) {
    p.mask_function = same_document(documents());
    set_ragged(p, {0, 75, 112}, {0, 90, 150});
    p.key_lengths = {90, 41};
  });
  add("within_blocks", [](Problem& p, TensorOptions&) {
    p.mask_function = striped_heads();
    p.mask = Mask::blocks(block_patterns::local({75, 101, 16, 32}, 1));
  });
  add("rows_that_see_nothing", [](Problem& p, TensorOptions& o) {
    p.mask_function = dilated({7, 20});
    p.seq_q = 140;
    p.seq_k = 50;
    o.dlse = true;
  });
  add("part_of_a_whole", [](Problem& p, TensorOptions&) {
    p.mask_function = dilated({3, 400});
    p.function_positions = {0, 0, 400, 300, 1, 2};
  });
  add("with_score_function", [](Problem& p, TensorOptions& o) {
    p.mask_function = dilated({2, 60});
    p.score_function = gated_distance({0.5F});
    p.softcap = 3.0F;
    p.alibi = o.dlse = true;
    p.dropout = {0.2, 8, 0, 0, 0, 0};
  });
}

}  // namespace

std::vector<Case> function_cases() {
  std::vector<Case> cases;
  add_score_functions(cases);
  add_mask_functions(cases);
  return cases;
}

}  // namespace tessera::test
