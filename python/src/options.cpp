#include "options.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "refuse.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

// The keywords that are given. A call has few, which a search finds sooner than a hash of each that it could have.
class Keywords {
 public:
  explicit Keywords(const nb::dict& options) {
    given_.reserve(options.size());
    for (const auto& [name, value] : options) {
      if (!value.is_none()) {
        given_.emplace_back(nb::cast<std::string_view>(name), nb::borrow(value));
      }
    }
  }

  // Invalid where it is absent or None.
  nb::object find(std::string_view name) const {
    for (const auto& [given, value] : given_) {
      if (given == name) {
        return value;
      }
    }
    return {};
  }

 private:
  std::vector<std::pair<std::string_view, nb::object>> given_;  // the names are those of the dict's own strings
};

// The option `name`, or nothing where it is absent or None.
template <class Value>
std::optional<Value> option(const Keywords& options, const char* name, const char* accepted) {
  const nb::object given = options.find(name);
  if (!given.is_valid()) {
    return std::nullopt;
  }
  Value value{};
  // nanobind would read a number out of a text.
  const bool digits = std::is_arithmetic_v<Value> && nb::isinstance<nb::str>(given);
  if (digits || !nb::try_cast<Value>(given, value)) {
    refuse(name, nb::repr(given).c_str(), accepted);
  }
  return value;
}

Alignment alignment_of(const Keywords& options) {
  constexpr const char* kAccepted = "\"bottom_right\", \"top_left\" or an integer";
  const nb::object given = options.find("alignment");
  if (given.is_valid() && nb::isinstance<nb::str>(given)) {
    const auto name = nb::cast<std::string>(given);
    if (name == "top_left") {
      return Alignment::top_left();
    }
    if (name != "bottom_right") {
      refuse("alignment", "\"" + name + "\"", kAccepted);
    }
    return Alignment::bottom_right();
  }
  const auto diagonal = option<std::int64_t>(options, "alignment", kAccepted);
  return diagonal ? Alignment::at(*diagonal) : Alignment::bottom_right();
}

Mask mask_of(const Keywords& options) {
  using Side = std::optional<std::int64_t>;
  using Ids = std::vector<std::int32_t>;
  const Alignment alignment = alignment_of(options);
  Mask mask;
  if (option<bool>(options, "causal", "True or False").value_or(false)) {
    mask = mask & Mask::causal(alignment);
  }
  if (const auto window = option<std::pair<Side, Side>>(options, "window", "a pair of integers or None")) {
    mask = mask &
           Mask::window(window->first.value_or(Mask::kUnlimited), window->second.value_or(Mask::kUnlimited), alignment);
  }
  if (auto ids =
          option<std::pair<Ids, Ids>>(options, "segments", "(query_ids, key_ids), each a sequence of integers")) {
    mask = mask & Mask::segments({std::move(ids->first), std::move(ids->second)});
  }
  if (const nb::object blocks = options.find("blocks"); blocks.is_valid()) {
    if (!nb::isinstance<BlockMask>(blocks)) {
      refuse("blocks", nb::repr(blocks).c_str(), "a tessera.BlockMask");
    }
    mask = mask & Mask::blocks(nb::cast<BlockMask>(blocks));
  }
  return mask.with_alignment(alignment);
}

template <class Function>
std::optional<Function> function_of(const Keywords& options, const char* name, const char* accepted) {
  const nb::object given = options.find(name);
  if (!given.is_valid()) {
    return std::nullopt;
  }
  if (!nb::isinstance<Function>(given)) {
    refuse(name, nb::repr(given).c_str(), accepted);
  }
  return nb::cast<Function>(given);
}

void apply_functions(Problem& problem, const Keywords& options) {
  problem.score_function = function_of<ScoreFunction>(options, "score_function", "a tessera.ScoreFunction");
  problem.mask_function = function_of<MaskFunction>(options, "mask_function", "a tessera.MaskFunction");
  using Start = std::tuple<int, int, int, int>;
  if (const auto start = option<Start>(options, "function_start", "four integers (batch, head, query, key)")) {
    Positions& at = problem.function_positions;
    std::tie(at.batch_start, at.head_start, at.query_start, at.key_start) = *start;
  }
}

Dropout dropout_of(const Keywords& options) {
  Dropout dropout;
  dropout.probability = option<double>(options, "dropout_p", "0 to 1").value_or(0.0);
  dropout.seed = option<std::uint64_t>(options, "dropout_seed", "0 to 2^64 - 1").value_or(0);
  using Start = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  if (const auto start = option<Start>(options, "dropout_start", "four integers (batch, head, query, key)")) {
    std::tie(dropout.batch_start, dropout.head_start, dropout.query_start, dropout.key_start) = *start;
  }
  return dropout;
}

void check_rank(const ConstTensorView& view, const char* name, bool ragged) {
  if (view.rank != (ragged ? 3 : 4)) {
    refuse(name, view.describe(),
           ragged ? "[total_tokens, heads, dim] with cu_seqlens_q" : "[batch, seq, heads, dim] without cu_seqlens_q");
  }
}

// Of a cache: the tensors that say which keys are in use and where they are.
void apply_cache(Problem& problem, const ConstTensorView& k, const Call& call) {
  problem.lengths_in_tensors = !call.key_lengths.absent();
  if (const ConstTensorView& table = call.page_table; !table.absent()) {
    if (table.rank != 2 || k.rank != 4) {
      refuse("page_table", table.describe(),
             "int32 [batch, pages of a sequence] with k [pages, page_size, heads, dim]");
    }
    problem.page_size = k.shape[1];
    problem.seq_k = table.shape[1] * k.shape[1];
  }
}

Problem shapes_of(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                  const Keywords& options) {
  using Lengths = std::vector<std::int64_t>;
  constexpr const char* kAccepted = "a sequence of integers";
  Problem problem;
  auto cu_seqlens_q = option<Lengths>(options, "cu_seqlens_q", kAccepted);
  auto cu_seqlens_k = option<Lengths>(options, "cu_seqlens_k", kAccepted);
  const bool ragged = cu_seqlens_q.has_value();
  check_rank(q, "q", ragged);
  check_rank(k, "k", ragged);
  check_rank(v, "v", ragged);
  if (ragged) {
    if (cu_seqlens_q->empty()) {
      refuse("cu_seqlens_q", "no numbers", "batch + 1 numbers");
    }
    set_ragged(problem, *cu_seqlens_q, cu_seqlens_k ? std::move(*cu_seqlens_k) : *cu_seqlens_q);
  } else if (cu_seqlens_k) {
    refuse("cu_seqlens_k", "given", "only together with cu_seqlens_q");
  } else {
    problem.batch = q.shape[0];
    problem.seq_q = q.shape[1];
    problem.seq_k = k.shape[1];
  }
  const std::size_t heads = ragged ? 1 : 2;
  problem.dtype = q.dtype;
  problem.heads_q = q.shape[heads];
  problem.heads_kv = k.shape[heads];
  problem.dim_qk = q.shape[heads + 1];
  problem.dim_v = v.shape[heads + 1];
  problem.key_lengths = option<Lengths>(options, "key_lengths", kAccepted).value_or(Lengths{});
  return problem;
}

// The tensor that the option `name` holds; an absent view without one. `call` keeps it alive.
ConstTensorView tensor_option(const Keywords& options, const char* name, Call& call) {
  const nb::object given = options.find(name);
  if (!given.is_valid()) {
    return {};
  }
  try {
    call.owned.push_back(input_of(given, name, call.plan.device));
  } catch (const nb::builtin_exception&) {
    refuse(name, nb::repr(given).c_str(), "a DLPack tensor");
  }
  return call.owned.back().view;
}

// None is the default stream of a CUDA device, and all that there is on the CPU.
void* stream_of(const Keywords& options, const Device& device) {
  const auto stream = option<std::uintptr_t>(options, "stream", "a cudaStream_t as an integer");
  if (stream && device.kind == DeviceKind::cpu) {
    refuse("stream", std::to_string(*stream) + " with tensors on the CPU", "None");
  }
  return reinterpret_cast<void*>(stream.value_or(0));
}

PlanOptions plan_options_of(const Keywords& options, const Device& device) {
  PlanOptions plan;
  plan.device = device;
  plan.impl = option<std::string>(options, "impl", "the name of an Impl").value_or("");
  plan.isa = option<std::string>(options, "isa", "the name of an instruction set").value_or("");
  plan.threads = option<int>(options, "threads", "0 (all) to 4096").value_or(0);
  plan.deterministic = option<bool>(options, "deterministic", "True or False").value_or(true);
  if (const auto name = option<std::string>(options, "float32_products", "\"exact\" or \"tf32\"")) {
    plan.float32_products = float32_products_from_name(*name);
  }
  return plan;
}

}  // namespace

Call make_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v, const nb::dict& options) {
  const Keywords keywords(options);
  Call call;
  call.plan = plan_options_of(keywords, q.device);
  call.stream = stream_of(keywords, q.device);
  Problem& problem = call.problem;
  problem = shapes_of(q, k, v, keywords);
  if (const auto name = option<std::string>(keywords, "output_dtype", "the name of a dtype")) {
    problem.output_dtype = dtype_from_name(*name);
  }
  problem.mask = mask_of(keywords);
  problem.scale = option<float>(keywords, "scale", "a number");
  problem.softcap = option<float>(keywords, "softcap", "a number").value_or(0.0F);
  apply_functions(problem, keywords);
  problem.dropout = dropout_of(keywords);

  call.score.alibi_slopes = tensor_option(keywords, "alibi_slopes", call);
  problem.alibi = !call.score.alibi_slopes.absent();
  call.score.sinks = tensor_option(keywords, "sinks", call);
  problem.sinks = !call.score.sinks.absent();
  call.key_lengths = tensor_option(keywords, "cache_lengths", call);
  call.page_table = tensor_option(keywords, "page_table", call);
  apply_cache(problem, k, call);
  call.score.bias = tensor_option(keywords, "bias", call);
  if (const ConstTensorView& bias = call.score.bias; !bias.absent()) {
    if (bias.rank != 4) {
      refuse("bias", bias.describe(), "[batch or 1, heads_q or 1, seq_q or 1, seq_k or 1]");
    }
    problem.bias_shape = bias.shape;
    problem.bias_dtype = bias.dtype;
  }
  return call;
}

}  // namespace tessera::python
