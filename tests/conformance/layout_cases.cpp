// Memory layouts and ragged batches.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

using cli::StrideKind;
using cli::TensorOptions;

void add_strides(std::vector<Case>& cases) {
  struct Kind {
    const char* name;
    std::optional<StrideKind> strides;
  };
  const Kind kinds[] = {{"packed", StrideKind::packed},
                        {"heads_first", StrideKind::heads_first},
                        {"padded", StrideKind::padded},
                        {"mixed", std::nullopt}};
  for (const Kind& kind : kinds) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      Case result{std::string("strides_") + kind.name + "_" + std::string(dtype_name(dtype)), base_problem(), {}};
      result.problem.dtype = dtype;
      result.problem.heads_q = 4;
      result.problem.dim_v = 33;
      result.problem.bias_shape = {{2, 4, 75, 101}};
      result.tensors.strides = kind.strides;
      result.tensors.dlse = true;
      cases.push_back(result);
      set_ragged(result.problem, {0, 60, 75}, {0, 1, 101});
      result.problem.bias_shape.reset();
      result.name += "_ragged";
      cases.push_back(result);
    }
  }
}

}  // namespace

std::vector<Case> layout_cases() {
  std::vector<Case> cases;
  add_strides(cases);
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case(std::move(name), change));
  };
  add("ragged", [](Problem& p, TensorOptions&) { set_ragged(p, {0, 10, 75, 140}, {0, 70, 101, 230}); });
  add("ragged_empty_sequences", [](Problem& p, TensorOptions& o) {
    set_ragged(p, {0, 0, 30, 30, 75, 80}, {0, 20, 20, 40, 101, 101}), o.dlse = true;
  });
  add("ragged_no_tokens", [](Problem& p, TensorOptions&) { set_ragged(p, {0, 0, 0}, {0, 0, 0}); });
  add("ragged_no_sequences", [](Problem& p, TensorOptions&) { set_ragged(p, {0}, {0}); });
  add("ragged_one_token_each", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5});
    p.mask = Mask::causal();
  });
  add("ragged_causal", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 40, 75}, {0, 30, 131});
    p.mask = Mask::causal();
  });
  add("ragged_key_lengths", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 40, 75}, {0, 50, 131});
    p.key_lengths = {20, 81};
    p.mask = Mask::window(30, 2);
  });
  add("ragged_segments", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 4, 9}, {0, 3, 9});
    p.mask = Mask::segments({{0, 0, 1, 1, 0, 1, 1, 2, 3}, {0, 0, 1, 0, 0, 1, 2, 2, 2}});
  });
  add("ragged_grouped_bfloat16", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 33, 110}, {0, 100, 165});
    p.dtype = DType::bfloat16;
    p.heads_q = 8;
    p.mask = Mask::causal();
  });
  add("ragged_alibi_sinks_dropout", [](Problem& p, TensorOptions& o) {
    set_ragged(p, {0, 33, 110}, {0, 100, 165});
    p.alibi = p.sinks = o.alibi_per_batch = o.dlse = true;
    p.dropout = {0.2, 8, 0, 0, 0, 0};
  });
  add("ragged_bias", [](Problem& p, TensorOptions&) {
    set_ragged(p, {0, 33, 110}, {0, 100, 165});
    p.bias_shape = {{2, 2, 77, 100}};
  });
  return cases;
}

}  // namespace tessera::test
