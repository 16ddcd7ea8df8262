#include "options.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>

#include "tessera/dlpack.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

[[noreturn]] void refuse(const std::string& argument, const std::string& value, const std::string& accepted) {
  throw Error(ErrorCode::invalid_argument, argument + ": " + value + "; accepted: " + accepted);
}

template <class NbArray>
TensorView writable_view(const NbArray& array, const std::string& name) {
  nb::dlpack::dltensor tensor;
  tensor.data = const_cast<void*>(static_cast<const void*>(array.data()));
  tensor.device = {array.device_type(), array.device_id()};
  tensor.ndim = static_cast<std::int32_t>(array.ndim());
  tensor.dtype = array.dtype();
  tensor.shape = const_cast<std::int64_t*>(array.shape_ptr());
  tensor.strides = const_cast<std::int64_t*>(array.stride_ptr());
  try {
    return from_dlpack(tensor);
  } catch (const Error& error) {
    throw Error(error.code(), name + ": " + error.what());
  }
}

// The option `name`, or nothing where it is absent or None.
template <class Value>
std::optional<Value> option(const nb::dict& options, const char* name, const char* accepted) {
  if (!options.contains(name)) {
    return std::nullopt;
  }
  const nb::object given = options[name];
  if (given.is_none()) {
    return std::nullopt;
  }
  Value value{};
  if (!nb::try_cast<Value>(given, value)) {
    refuse(name, nb::repr(given).c_str(), accepted);
  }
  return value;
}

Alignment alignment_of(const nb::dict& options) {
  constexpr const char* kAccepted = "\"bottom_right\", \"top_left\" or an integer";
  if (options.contains("alignment") && nb::isinstance<nb::str>(options["alignment"])) {
    const auto name = nb::cast<std::string>(options["alignment"]);
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

Mask mask_of(const nb::dict& options) {
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
  if (options.contains("blocks") && !options["blocks"].is_none()) {
    const nb::object blocks = options["blocks"];
    if (!nb::isinstance<BlockMask>(blocks)) {
      refuse("blocks", nb::repr(blocks).c_str(), "a tessera.BlockMask");
    }
    mask = mask & Mask::blocks(nb::cast<BlockMask>(blocks));
  }
  return mask.with_alignment(alignment);
}

Dropout dropout_of(const nb::dict& options) {
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

Problem shapes_of(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                  const nb::dict& options) {
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
ConstTensorView tensor_option(const nb::dict& options, const char* name, Call& call) {
  const auto array = option<Array>(options, name, "a DLPack tensor");
  if (!array) {
    return {};
  }
  call.owned.push_back(*array);
  return view_of(*array, name);
}

}  // namespace

ConstTensorView view_of(const Array& array, const std::string& name) { return writable_view(array, name); }

TensorView view_of(const MutableArray& array, const std::string& name) { return writable_view(array, name); }

Call make_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v, const nb::dict& options) {
  Call call;
  Problem& problem = call.problem;
  problem = shapes_of(q, k, v, options);
  if (const auto name = option<std::string>(options, "output_dtype", "the name of a dtype")) {
    problem.output_dtype = dtype_from_name(*name);
  }
  problem.mask = mask_of(options);
  problem.scale = option<float>(options, "scale", "a number");
  problem.softcap = option<float>(options, "softcap", "a number").value_or(0.0F);
  problem.dropout = dropout_of(options);

  call.score.alibi_slopes = tensor_option(options, "alibi_slopes", call);
  problem.alibi = !call.score.alibi_slopes.absent();
  call.score.sinks = tensor_option(options, "sinks", call);
  problem.sinks = !call.score.sinks.absent();
  call.score.bias = tensor_option(options, "bias", call);
  if (const ConstTensorView& bias = call.score.bias; !bias.absent()) {
    if (bias.rank != 4) {
      refuse("bias", bias.describe(), "[batch or 1, heads_q or 1, seq_q or 1, seq_k or 1]");
    }
    problem.bias_shape = bias.shape;
    problem.bias_dtype = bias.dtype;
  }

  call.plan.device = q.device;
  call.plan.impl = option<std::string>(options, "impl", "the name of an Impl").value_or("");
  call.plan.isa = option<std::string>(options, "isa", "the name of an instruction set").value_or("");
  call.plan.threads = option<int>(options, "threads", "0 (all) or more").value_or(0);
  return call;
}

}  // namespace tessera::python
