// Scale, softcap, ALiBi, bias, sinks, dropout and the gradient of LSE.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

using cli::TensorOptions;

// Every way to broadcast the four extents of the bias, which are also those of its gradient.
void add_biases(std::vector<Case>& cases) {
  for (int bits = 0; bits < 16; ++bits) {
    Case result{"bias", base_problem(), {}};
    Problem& problem = result.problem;
    problem.dim_qk = problem.dim_v = 16;
    problem.bias_shape = {{problem.batch, problem.heads_q, problem.seq_q, problem.seq_k}};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const bool broadcast = (bits >> axis & 1) != 0;
      if (broadcast) {
        (*problem.bias_shape)[axis] = 1;
      }
      result.name += std::string("_") + (broadcast ? "1" : std::string(1, "bhqk"[axis]));
    }
    problem.mask = bits % 2 == 0 ? Mask::causal() : Mask::none();
    result.tensors.seed = static_cast<std::uint64_t>(bits);
    cases.push_back(result);
  }
}

}  // namespace

std::vector<Case> score_cases() {
  std::vector<Case> cases;
  add_biases(cases);
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case(std::move(name), change));
  };
  add("scale_large", [](Problem& p, TensorOptions&) { p.scale = 2.0F; });
  add("scale_zero", [](Problem& p, TensorOptions&) { p.scale = 0.0F; });
  add("scale_negative", [](Problem& p, TensorOptions&) { p.scale = -0.3F; });
  add("steep_softmax", [](Problem&, TensorOptions& o) { o.magnitude = 2.0; });
  add("softcap", [](Problem& p, TensorOptions&) { p.softcap = 1.5F; });
  add("softcap_saturated", [](Problem& p, TensorOptions&) { p.softcap = 0.05F; });
  add("softcap_large", [](Problem& p, TensorOptions&) { p.softcap = 1e6F; });
  add("softcap_negative_scale", [](Problem& p, TensorOptions&) { p.softcap = 2.0F, p.scale = -1.0F; });
  add("alibi", [](Problem& p, TensorOptions&) { p.alibi = true; });
  add("alibi_per_batch", [](Problem& p, TensorOptions& o) { p.alibi = o.alibi_per_batch = true; });
  add("alibi_causal_top_left",
      [](Problem& p, TensorOptions&) { p.alibi = true, p.mask = Mask::causal(Alignment::top_left()); });
  add("alibi_diagonal_without_band",
      [](Problem& p, TensorOptions&) { p.alibi = true, p.mask = Mask().with_alignment(Alignment::at(13)); });
  add("alibi_key_lengths", [](Problem& p, TensorOptions&) { p.alibi = true, p.key_lengths = {90, 17}; });
  add("bias_with_holes", [](Problem& p, TensorOptions& o) {
    p.bias_shape = {{2, 2, 75, 101}};
    o.bias_holes = true;
  });
  add("bias_hides_everything_from_some_rows", [](Problem& p, TensorOptions& o) {
    p.bias_shape = {{1, 1, 75, 1}};
    o.bias_holes = o.dlse = true;
  });
  add("bias_expanded_by_strides", [](Problem& p, TensorOptions& o) {
    p.bias_shape = {{2, 2, 75, 101}};
    o.bias_expanded = true;
  });
  add("bias_bfloat16", [](Problem& p, TensorOptions&) {
    p.dtype = p.bias_dtype = DType::bfloat16;
    p.bias_shape = {{1, 2, 75, 101}};
  });
  add("bias_float32_with_float16", [](Problem& p, TensorOptions&) {
    p.dtype = DType::float16;
    p.bias_shape = {{2, 1, 75, 101}};
  });
  add("bias_grouped_heads", [](Problem& p, TensorOptions&) {
    p.heads_q = 6;
    p.bias_shape = {{1, 6, 75, 101}};
  });
  add("sinks", [](Problem& p, TensorOptions&) { p.sinks = true; });
  add("sinks_dlse", [](Problem& p, TensorOptions& o) { p.sinks = o.dlse = true; });
  add("sinks_rows_that_see_nothing", [](Problem& p, TensorOptions& o) {
    p.sinks = o.dlse = true;
    p.mask = Mask::window(3, 0, Alignment::at(-20));
  });
  add("sinks_without_keys", [](Problem& p, TensorOptions& o) {
    p.sinks = o.dlse = true;
    p.seq_k = 0;
  });
  add("sinks_key_length_zero", [](Problem& p, TensorOptions& o) {
    p.sinks = o.dlse = true;
    p.key_lengths = {0, 50};
  });
  add("dlse", [](Problem&, TensorOptions& o) { o.dlse = true; });
  add("dropout", [](Problem& p, TensorOptions&) { p.dropout = {0.1, 1, 0, 0, 0, 0}; });
  add("dropout_half", [](Problem& p, TensorOptions&) { p.dropout = {0.5, 0xfedcba9876543210, 0, 0, 0, 0}; });
  add("dropout_most", [](Problem& p, TensorOptions&) { p.dropout = {0.99, 3, 0, 0, 0, 0}; });
  add("dropout_all", [](Problem& p, TensorOptions& o) { p.dropout = {1.0, 3, 0, 0, 0, 0}, o.dlse = true; });
  add("dropout_starts", [](Problem& p, TensorOptions&) { p.dropout = {0.3, 9, 1000, 77, 5, 6}; });
  add("dropout_far_starts",
      [](Problem& p, TensorOptions&) { p.dropout = {0.3, 9, 4294967200, 4294967100, 4294967290, 4294967290}; });
  add("dropout_grouped_causal", [](Problem& p, TensorOptions&) {
    p.dropout = {0.25, 4, 0, 3, 0, 0};
    p.heads_q = 6;
    p.mask = Mask::causal();
  });
  add("dropout_bfloat16", [](Problem& p, TensorOptions&) {
    p.dropout = {0.25, 4, 0, 0, 0, 0};
    p.dtype = DType::bfloat16;
  });
  return cases;
}

}  // namespace tessera::test
