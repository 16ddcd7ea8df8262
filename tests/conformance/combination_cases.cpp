// Features together, as models use them, and all at once.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

using cli::TensorOptions;

void everything(Problem& p, TensorOptions& o) {
  p.heads_q = 6;
  p.dim_v = 56;
  p.mask = Mask::window(70, 10);
  p.softcap = 4.0F;
  p.alibi = p.sinks = o.dlse = o.alibi_per_batch = true;
  p.bias_shape = {{1, 6, 75, 101}};
  p.dropout = {0.15, 5, 2, 3, 4, 5};
  p.key_lengths = {101, 60};
  o.strides.reset();
}

}  // namespace

std::vector<Case> combination_cases() {
  std::vector<Case> cases;
  const auto add = [&cases](std::string name, void (*change)(Problem&, TensorOptions&)) {
    cases.push_back(make_case(std::move(name), change));
  };
  add("everything_float32", everything);
  add("everything_bfloat16", [](Problem& p, TensorOptions& o) { everything(p, o), p.dtype = DType::bfloat16; });
  add("everything_float16_to_float32", [](Problem& p, TensorOptions& o) {
    everything(p, o);
    p.dtype = DType::float16;
    p.output_dtype = DType::float32;
  });
  add("everything_ragged", [](Problem& p, TensorOptions& o) {
    everything(p, o);
    set_ragged(p, {0, 75, 120}, {0, 101, 162});
    p.key_lengths = {101, 40};
  });
  add("softcapped_window_grouped", [](Problem& p, TensorOptions&) {  // Gemma 2
    p.heads_q = 4;
    p.softcap = 50.0F;
    p.mask = Mask::window(64, 0);
    p.seq_q = p.seq_k = 200;
    p.dim_qk = p.dim_v = 64;
  });
  add("sinks_window_grouped", [](Problem& p, TensorOptions&) {  // gpt-oss
    p.heads_q = 8;
    p.heads_kv = 1;
    p.sinks = true;
    p.mask = Mask::window(127, 0);
    p.seq_q = p.seq_k = 200;
    p.dim_qk = p.dim_v = 64;
    p.dtype = DType::bfloat16;
  });
  add("latent_dims", [](Problem& p, TensorOptions&) {  // DeepSeek: d_qk = 192, d_v = 128
    p.batch = 1;
    p.dim_qk = 192;
    p.dim_v = 128;
    p.mask = Mask::causal();
    p.dtype = DType::bfloat16;
  });
  add("decoding", [](Problem& p, TensorOptions&) {
    p.seq_q = 1;
    p.seq_k = 600;
    p.heads_q = 8;
    p.heads_kv = 2;
    p.key_lengths = {600, 123};
    p.mask = Mask::causal();
  });
  add("relative_position_bias", [](Problem& p, TensorOptions& o) {  // T5: one bias a head, over the batch
    p.bias_shape = {{1, 2, 75, 101}};
    p.scale = 1.0F;
    o.magnitude = 0.4;
  });
  add("padding_mask_as_bias", [](Problem& p, TensorOptions& o) {
    p.bias_shape = {{2, 1, 1, 101}};
    o.bias_holes = true;
  });
  add("specials_dense", [](Problem&, TensorOptions& o) { o.specials = true; });
  add("specials_causal", [](Problem& p, TensorOptions& o) { o.specials = true, p.mask = Mask::causal(); });
  add("specials_window_bfloat16", [](Problem& p, TensorOptions& o) {
    o.specials = true;
    p.mask = Mask::window(8, 8);
    p.dtype = DType::bfloat16;
  });
  return cases;
}

}  // namespace tessera::test
