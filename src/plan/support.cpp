#include "plan/support.h"

#include <functional>
#include <numeric>

namespace tessera::internal {

namespace {

TESSERA_SCORE_FUNCTION(halved, return s * T(0.5F);)
TESSERA_MASK_FUNCTION(every_second_key, return i.key % 2 == 0;)

constexpr std::int64_t kQueries = 16;  // as many as kernels for decoding take
constexpr std::int64_t kKeys = 256;

Problem plain_problem() {
  Problem problem;
  problem.dtype = DType::bfloat16;
  problem.batch = 2;
  problem.seq_q = kQueries;
  problem.seq_k = kKeys;
  problem.heads_q = 4;
  problem.heads_kv = 4;
  problem.dim_qk = 64;
  problem.dim_v = 64;
  return problem;
}

class Features {
 public:
  SupportFeature& add(
      std::string_view group, std::string_view name, const std::function<void(Problem&)>& change = [](Problem&) {}) {
    SupportFeature feature{group, name, plain_problem()};
    change(feature.problem);
    features_.push_back(std::move(feature));
    return features_.back();
  }
  std::vector<SupportFeature> take() { return std::move(features_); }

 private:
  std::vector<SupportFeature> features_;
};

void add_dtypes(Features& features) {
  constexpr std::string_view kGroup = "Numbers";
  for (const auto& [name, dtype] : {std::pair{"bfloat16", DType::bfloat16},
                                    {"float16", DType::float16},
                                    {"float32", DType::float32},
                                    {"float64", DType::float64}}) {
    features.add(kGroup, name, [dtype = dtype](Problem& problem) { problem.dtype = dtype; });
  }
  features.add(kGroup, "float32 outputs of 16-bit inputs",
               [](Problem& problem) { problem.output_dtype = DType::float32; });
}

void add_shapes(Features& features) {
  constexpr std::string_view kGroup = "Shapes";
  const auto dims = [](std::int64_t qk, std::int64_t v) {
    return [qk, v](Problem& problem) {
      problem.dim_qk = qk;
      problem.dim_v = v;
    };
  };
  features.add(kGroup, "head dim 96", dims(96, 96));
  features.add(kGroup, "head dim 128", dims(128, 128));
  features.add(kGroup, "head dim 192", dims(192, 192));
  features.add(kGroup, "head dim 256", dims(256, 256));
  features.add(kGroup, "head dim 512", dims(512, 512));
  features.add(kGroup, "head dims that are no multiples of 8", dims(33, 33));
  features.add(kGroup, "`dim_v` other than `dim_qk`: 192 and 128", dims(192, 128));
  features.add(kGroup, "grouped heads", [](Problem& problem) { problem.heads_kv = 2; });
  features.add(kGroup, "thousands of queries", [](Problem& problem) { problem.seq_q = 4096; });
  features.add(kGroup, "no keys", [](Problem& problem) { problem.seq_k = 0; });
  features.add(kGroup, "rows that are not multiples of 16 bytes apart").odd_strides = true;
}

void add_sequences(Features& features) {
  constexpr std::string_view kGroup = "Sequences";
  features.add(kGroup, "ragged batch", [](Problem& problem) { set_ragged(problem, {0, 8, 16}, {0, 100, 256}); });
  features.add(kGroup, "keys in use", [](Problem& problem) { problem.key_lengths = {200, 64}; });
  features.add(kGroup, "keys in use that tensors tell", [](Problem& problem) { problem.lengths_in_tensors = true; })
      .backward = false;
  features.add(kGroup, "paged keys", [](Problem& problem) { problem.page_size = 16; }).backward = false;
}

BlockMask diagonal_blocks() {
  return BlockMask::from_function({.queries = kQueries, .keys = kKeys, .block_q = 16, .block_k = 64},
                                  [](std::int64_t /*row*/, std::int64_t column) { return column % 2 == 0; });
}

Segments two_documents(const Problem& problem) {
  Segments segments;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (auto [ids, length] : {std::pair{&segments.query, problem.seq_q}, {&segments.key, problem.seq_k}}) {
      for (std::int64_t i = 0; i < length; ++i) {
        ids->push_back(i < length / 2 ? 0 : 1);
      }
    }
  }
  return segments;
}

void add_masks(Features& features) {
  constexpr std::string_view kGroup = "Masks";
  const auto mask = [](const Mask& value) { return [value](Problem& problem) { problem.mask = value; }; };
  features.add(kGroup, "causal, bottom-right", mask(Mask::causal()));
  features.add(kGroup, "causal, top-left", mask(Mask::causal(Alignment::top_left())));
  features.add(kGroup, "causal from any diagonal", mask(Mask::causal(Alignment::at(5))));
  features.add(kGroup, "window", mask(Mask::window(64, 8)));
  features.add(kGroup, "segments", mask(Mask::segments(two_documents(plain_problem()))));
  features.add(kGroup, "segments at head dim 256", [](Problem& problem) {
    problem.mask = Mask::segments(two_documents(problem));
    problem.dim_qk = problem.dim_v = 256;
  });
  features.add(kGroup, "block mask", mask(Mask::blocks(diagonal_blocks())));
  features.add(kGroup, "block mask of each head", [](Problem& problem) {
    const std::vector<BlockMask> heads(static_cast<std::size_t>(problem.heads_q), diagonal_blocks());
    problem.mask = Mask::blocks(BlockMask::over_heads(heads));
  });
  features.add(kGroup, "block mask, segments and causal at once", [](Problem& problem) {
    problem.mask = Mask::blocks(diagonal_blocks()) & Mask::segments(two_documents(problem)) & Mask::causal();
  });
  features.add(kGroup, "a mask function of the user", [](Problem& problem) {
    problem.mask_function = every_second_key();
    problem = lower_mask_function(problem);
  });
}

void add_scores(Features& features) {
  constexpr std::string_view kGroup = "Scores";
  const auto bias = [](Problem& problem) { problem.bias_shape = {1, problem.heads_q, problem.seq_q, problem.seq_k}; };
  const auto wide = [](const std::function<void(Problem&)>& change) {
    return [change](Problem& problem) {
      problem.dim_qk = problem.dim_v = 256;
      change(problem);
    };
  };
  const auto packed = [](const std::function<void(Problem&)>& change) {
    return [change](Problem& problem) {
      problem.mask = Mask::segments(two_documents(problem));
      change(problem);
    };
  };
  const std::function<void(Problem&)> softcap = [](Problem& problem) { problem.softcap = 30.0F; };
  const std::function<void(Problem&)> alibi = [](Problem& problem) { problem.alibi = true; };
  const std::function<void(Problem&)> sinks = [](Problem& problem) { problem.sinks = true; };
  const std::function<void(Problem&)> dropout = [](Problem& problem) { problem.dropout.probability = 0.1; };
  features.add(kGroup, "scale of 0 or below", [](Problem& problem) { problem.scale = -0.5F; });
  features.add(kGroup, "softcap", softcap);
  features.add(kGroup, "softcap at head dim 256", wide(softcap));
  features.add(kGroup, "softcap with segments", packed(softcap));
  features.add(kGroup, "ALiBi", alibi);
  features.add(kGroup, "ALiBi at head dim 256", wide(alibi));
  features.add(kGroup, "bias, with its gradient", bias);
  features.add(kGroup, "broadcast bias, with its gradient",
               [](Problem& problem) { problem.bias_shape = {1, 1, problem.seq_q, problem.seq_k}; });
  features.add(kGroup, "sinks, with their gradient", sinks);
  features.add(kGroup, "dropout", dropout);
  features.add(kGroup, "dropout at head dim 256", wide(dropout));
  features.add(kGroup, "dropout with segments", packed(dropout));
  features.add(kGroup, "dropout of every second key", [](Problem& problem) {
    problem.dropout.probability = 0.1;
    problem.dropout.key_stride = 2;
  });
  const std::function<void(Problem&)> function = [](Problem& problem) { problem.score_function = halved(); };
  features.add(kGroup, "a score function of the user", function);
  features.add(kGroup, "a score function at head dim 256", wide(function));
  features.add(kGroup, "a score function with segments", packed(function));
  features.add(kGroup, "all of them at once", [&](Problem& problem) {
    bias(problem);
    for (const auto& change : {softcap, alibi, sinks, dropout}) {
      change(problem);
    }
  });
}

void add_ways(Features& features) {
  constexpr std::string_view kGroup = "Ways";
  SupportFeature& part = features.add(kGroup, "a part of the keys, as in a ring");
  part.forward = false;
  part.options.part_of_keys = true;
  SupportFeature& any_order = features.add(kGroup, "gradients summed in any order");
  any_order.forward = false;
  any_order.options.deterministic = false;
  features.add(kGroup, "the same bits in every run").forward = false;
}

}  // namespace

std::vector<SupportFeature> support_features() {
  Features features;
  add_dtypes(features);
  add_shapes(features);
  add_sequences(features);
  add_masks(features);
  add_scores(features);
  add_ways(features);
  return features.take();
}

std::optional<std::string> support_refusal(const Impl& impl, const SupportFeature& feature, Pass pass) {
  PlanOptions options = feature.options;
  options.device.kind = impl.device();
  if (feature.odd_strides) {
    if (auto reason = impl.refuses_odd_strides()) {
      return reason;
    }
  }
  return impl.refuses(feature.problem, pass, options);
}

}  // namespace tessera::internal
