#include "cli/problem_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "cli/flag_values.h"
#include "core/fail.h"
#include "tessera/error.h"

namespace tessera::cli {

namespace {

using internal::fail_argument;

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr const char* kShapeGroup = "Sizes";
constexpr const char* kMaskGroup = "Mask";
constexpr const char* kScoreGroup = "Scores and dropout";
constexpr const char* kTensorGroup = "Random tensors";
constexpr const char* kPlanGroup = "Plan";

const std::vector<std::string> kDTypeNames{"float32", "bfloat16", "float16"};

void add_dtype(::CLI::App& app, const std::string& name, const std::string& description,
               const std::function<void(DType)>& set, const char* group) {
  add_word(app, name, description, kDTypeNames, [set](const std::string& word) {
    set(dtype_from_name(word));
  })->group(group);
}

bool to_bias_axes(const std::string& text) {
  if (text == "1") {
    return true;
  }
  // In order and each once: a subsequence of the axes.
  std::string_view rest = kBiasAxes;
  for (const char axis : text) {
    const std::size_t found = rest.find(axis);
    if (found == std::string_view::npos) {
      return false;
    }
    rest.remove_prefix(found + 1);
  }
  return !text.empty();
}

// The flag that sets a field of Problem.
constexpr std::array<std::pair<std::string_view, std::string_view>, 21> kFlagOfField{
    {{"batch", "--batch"},
     {"seq_q", "--seq-q"},
     {"seq_k", "--seq-k"},
     {"heads_q", "--heads"},
     {"heads_kv", "--kv-heads"},
     {"dim_qk", "--dim"},
     {"dim_v", "--dim-v"},
     {"output_dtype", "--output-dtype"},
     {"bias_dtype", "--bias-dtype"},
     {"bias_shape", "--bias"},
     {"cu_seqlens_q", "--lengths"},
     {"cu_seqlens_k", "--lengths-k"},
     {"key_lengths", "--key-lengths"},
     {"scale", "--scale"},
     {"softcap", "--softcap"},
     {"dropout.probability", "--dropout"},
     {"mask diagonal", "--alignment"},
     {"window left", "--window"},
     {"window right", "--window"},
     {"segments.query", "--segments"},
     {"segments.key", "--segments-k"}}};

// validate(), with the names of flags in its messages. What comes from a file has no flag.
void validate_flags(const Problem& problem, bool sizes_from_flags) {
  try {
    validate(problem);
  } catch (const Error& error) {
    const std::string text = error.what();
    const std::string field = text.substr(0, text.find_first_of(":["));
    for (const auto& [name, flag] : kFlagOfField) {
      if (sizes_from_flags && name == field) {
        throw Error(error.code(), std::string(flag) + text.substr(field.size()));
      }
    }
    throw;
  }
}

}  // namespace

void ProblemFlags::add_shape(::CLI::App& app) {
  const auto integer = [&](const char* name, const char* description, std::int64_t lowest, std::int64_t highest,
                           const std::function<void(std::int64_t)>& set) {
    return add_integer(app, name, description, lowest, highest, set)->group(kShapeGroup);
  };
  add_dtype(
      app, "--dtype", "dtype of Q, K and V [float32; bfloat16 on cuda]", [this](DType d) { dtype_ = d; }, kShapeGroup);
  integer("--batch", "sequences", 0, kMost, [this](auto n) {
    batch = n;
    batch_given_ = true;
  })->default_str(std::to_string(batch));
  integer("--seq", "queries and keys of each sequence", 0, kMost, [this](auto n) {
    seq = n;
    seq_given_ = true;
  })->default_str(std::to_string(seq));
  integer("--seq-q", "queries of each sequence", 0, kMost, [this](auto n) { seq_q_ = n; });
  integer("--seq-k", "keys of each sequence", 0, kMost, [this](auto n) { seq_k_ = n; });
  integer("--heads", "query heads", 1, kMost, [this](auto n) { heads = n; })->default_str(std::to_string(heads));
  integer("--kv-heads", "key heads, a divisor of --heads [as --heads]", 1, kMost, [this](auto n) { kv_heads_ = n; });
  integer("--dim", "head dim of Q and K", 1, 512, [this](auto n) { dim = n; })->default_str(std::to_string(dim));
  integer("--dim-v", "head dim of V [as --dim]", 1, 512, [this](auto n) { dim_v_ = n; });
  app.add_flag("--alibi", alibi_, "ALiBi slopes")->group(kScoreGroup);
  app.add_flag("--sinks", sinks_, "an attention sink for each head")->group(kScoreGroup);
  add_value(app, "--bias", "AXES", "additive bias; axes out of bhqk that it has, or 1; the others broadcast",
            "letters out of bhqk in this order, or 1",
            [this](const std::string& text) {
              bias_ = text;
              return to_bias_axes(text);
            })
      ->group(kScoreGroup);
  add_dtype(
      app, "--bias-dtype", "dtype of the bias: float32 or as --dtype [float32]", [this](DType d) { bias_dtype_ = d; },
      kScoreGroup);
}

void ProblemFlags::add_options(::CLI::App& app) {
  add_dtype(
      app, "--output-dtype", "dtype of O and of the gradients [as --dtype]", [this](DType d) { output_dtype_ = d; },
      kShapeGroup);
  add_lengths(app);
  mask_.add(app, kMaskGroup);
  add_float(app, "--scale", "factor of Q K^T [1 / sqrt(dim)]", [this](float x) { scale_ = x; })->group(kScoreGroup);
  add_float(app, "--softcap", "S <- c tanh(S / c) [0: none]", [this](float x) { softcap_ = x; })->group(kScoreGroup);
  functions_.add(app, kMaskGroup, kScoreGroup);
  add_dropout(app);
}

void ProblemFlags::add_lengths(::CLI::App& app) {
  const auto lengths = [&](const char* name, const char* description, auto& target) {
    add_value(app, name, "N,N,..", description, "integers from 0, separated by commas, or none",
              [&target](const std::string& text) { return to_lengths(text, target.emplace()); })
        ->group(kShapeGroup);
  };
  lengths("--lengths", "ragged layout: query length of each sequence", lengths_);
  lengths("--lengths-k", "ragged layout: key length of each sequence [as --lengths]", lengths_k_);
  add_integers(app, "--key-lengths", "keys in use of each sequence [all]", key_lengths_)->group(kShapeGroup);
}

void ProblemFlags::add_dropout(::CLI::App& app) {
  add_number(app, "--dropout", "probability of dropping a weight [0]", [this](double x) {
    dropout_.probability = x;
  })->group(kScoreGroup);
  add_seed(app, "--dropout-seed", "seed of the dropout mask [0]", dropout_.seed)->group(kScoreGroup);
  add_value(app, "--dropout-start", "B,H,Q,K", "position in the whole problem that dropout counts from [0,0,0,0]",
            "four integers from 0 with commas between",
            [this](const std::string& text) {
              std::vector<std::int64_t> starts;
              for (const std::string& part : split(text, ',')) {
                starts.push_back(to_integer(part).value_or(-1));
              }
              starts.resize(starts.size() == 4 ? 4 : 0);
              const bool good = !starts.empty() && *std::min_element(starts.begin(), starts.end()) >= 0;
              if (good) {
                dropout_.batch_start = starts[0];
                dropout_.head_start = starts[1];
                dropout_.query_start = starts[2];
                dropout_.key_start = starts[3];
              }
              return good;
            })
      ->group(kScoreGroup);
}

void ProblemFlags::make_ragged(Problem& problem) const {
  const std::vector<std::int64_t> lengths = lengths_.value_or(std::vector<std::int64_t>{});
  auto queries = cumulative(lengths, "--lengths");
  set_ragged(problem, std::move(queries), cumulative(lengths_k_.value_or(lengths), "--lengths-k"));
}

Problem ProblemFlags::shape(std::int64_t length) const {
  Problem problem;
  problem.dtype = dtype_.value_or(default_dtype);
  problem.heads_q = heads;
  problem.heads_kv = kv_heads_.value_or(heads);
  problem.dim_qk = dim;
  problem.dim_v = dim_v_.value_or(dim);
  if (!lengths_) {
    problem.batch = batch;
    problem.seq_q = seq_q_.value_or(length);
    problem.seq_k = seq_k_.value_or(length);
  } else {
    if (seq_given_ || seq_q_ || seq_k_ || batch_given_) {
      fail_argument("--lengths", "given beside --batch, --seq, --seq-q or --seq-k", "one of them");
    }
    make_ragged(problem);
  }
  problem.alibi = alibi_;
  problem.sinks = sinks_;
  apply_bias(problem);
  return problem;
}

Problem ProblemFlags::problem() const { return complete(shape(seq), true); }

Problem ProblemFlags::problem_of_length(std::int64_t length) const { return complete(shape(length), true); }

Problem ProblemFlags::problem(Problem shaped) const { return complete(std::move(shaped), false); }

Problem ProblemFlags::complete(Problem shaped, bool from_flags) const {
  if (!lengths_ && lengths_k_) {
    fail_argument("--lengths-k", "given alone", "with --lengths");
  }
  shaped.output_dtype = output_dtype_;
  shaped.key_lengths = key_lengths_;
  shaped.scale = scale_;
  shaped.softcap = softcap_;
  functions_.apply(shaped);
  shaped.dropout = dropout_;
  validate_flags(shaped, from_flags);  // the mask below indexes the lengths
  shaped.mask = mask_.mask(shaped);
  validate_flags(shaped, from_flags);
  return shaped;
}

void ProblemFlags::apply_bias(Problem& problem) const {
  if (bias_.empty()) {
    if (bias_dtype_) {
      fail_argument("--bias-dtype", "given alone", "with --bias");
    }
    return;
  }
  const auto extent = [this](char axis, std::int64_t whole) {
    return bias_.find(axis) == std::string::npos ? 1 : whole;
  };
  problem.bias_shape = {extent('b', problem.batch), extent('h', problem.heads_q), extent('q', problem.seq_q),
                        extent('k', problem.seq_k)};
  problem.bias_dtype = bias_dtype_.value_or(DType::float32);
}

void add_tensor_flags(::CLI::App& app, TensorOptions& options) {
  add_seed(app, "--seed", "seed of the random numbers [0]", options.seed)->group(kTensorGroup);
  add_word(app, "--strides", "how the tensors lie in memory [packed]",
           {"packed", "heads-first", "padded", "padded16", "mixed", "mixed16"},
           [&options](const std::string& word) {
             options.strides.reset();
             options.aligned16 = word == "mixed16";
             for (int kind = 0; kind < kStrideKinds; ++kind) {
               if (stride_kind_name(static_cast<StrideKind>(kind)) == word) {
                 options.strides = static_cast<StrideKind>(kind);
               }
             }
           })
      ->group(kTensorGroup);
  add_number(
      app, "--magnitude", "standard deviation of Q and K [1]", [&options](double x) { options.magnitude = x; }, 0)
      ->group(kTensorGroup);
  app.add_flag("--alibi-per-batch", options.alibi_per_batch, "slopes for each sequence")->group(kTensorGroup);
  app.add_flag("--dlse", options.dlse, "a gradient with respect to LSE")->group(kTensorGroup);
  app.add_flag("--bias-holes", options.bias_holes, "-inf in one bias of eight")->group(kTensorGroup);
  app.add_flag("--bias-expanded", options.bias_expanded, "repeat the bias over batch and heads by strides of 0")
      ->group(kTensorGroup);
  app.add_flag("--specials", options.specials, "a few NaN and infinities in Q, K and V")->group(kTensorGroup);
}

std::vector<std::string> problem_flag_names(const ::CLI::App& app) {
  std::vector<std::string> names;
  for (const ::CLI::Option* option : app.get_options()) {
    for (const char* group : {kShapeGroup, kMaskGroup, kScoreGroup, kTensorGroup}) {
      if (option->get_group() == group && option->get_name() != "--seed") {
        names.push_back(option->get_name());
      }
    }
  }
  return names;
}

void add_plan_flags(::CLI::App& app, PlanOptions& options, ProblemFlags* problem) {
  add_value(app, "--device", "cpu|cuda[:N]", "where to compute [cpu]", "cpu, cuda, cuda:0, cuda:1, ..",
            [&options, problem](const std::string& text) {
              const auto device = to_device(text);
              options.device = device.value_or(Device{});
              if (problem != nullptr) {
                problem->default_dtype = options.device.kind == DeviceKind::cuda ? DType::bfloat16 : DType::float32;
              }
              return device.has_value();
            })
      ->group(kPlanGroup);
  std::vector<std::string> names;
  for (const ImplInfo& info : implementations()) {
    names.push_back(info.name);
  }
  add_word(app, "--impl", "the Impl to use [the first that accepts]", names, [&options](const std::string& word) {
    options.impl = word;
  })->group(kPlanGroup);
  add_word(app, "--isa", "instruction set of the CPU Impls [the best]", cpu_info().isas,
           [&options](const std::string& word) { options.isa = word; })
      ->group(kPlanGroup);
  add_integer(app, "--threads", "threads [all]", 1, 4096, [&options](auto n) {
    options.threads = static_cast<int>(n);
  })->group(kPlanGroup);
  app.add_flag_callback(
         "--nondeterministic", [&options] { options.deterministic = false; },
         "backward on cuda: add the terms of dQ in any order")
      ->group(kPlanGroup);
  add_word(app, "--float32-products", "products of float32 inputs: within the contract, or rounded to TF32 [exact]",
           {"exact", "tf32"},
           [&options](const std::string& word) { options.float32_products = float32_products_from_name(word); })
      ->group(kPlanGroup);
}

}  // namespace tessera::cli
