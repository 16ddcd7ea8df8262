#include <algorithm>
#include <array>
#include <span>
#include <string>

#include "core/fail.h"
#include "plan/validate.h"

namespace tessera::internal {

namespace {

std::string shape_text(std::initializer_list<std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

std::string device_text(const Device& device) {
  return device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

struct Expected {
  DType dtype;
  Device device;
  bool free_last_stride = false;
  bool output = false;
};

bool shape_equals(const ConstTensorView& view, std::initializer_list<std::int64_t> shape) {
  return view.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), view.shape.begin());
}

void check_strides(std::string_view name, const ConstTensorView& view, const Expected& expected) {
  if (view.elements() == 0) {
    return;  // frameworks give empty tensors strides of their own choice, 0 among them
  }
  const auto last = static_cast<std::size_t>(view.rank - 1);
  if (!expected.free_last_stride && view.shape[last] > 1 && view.strides[last] != 1) {
    fail_argument(std::string(name) + " stride of the last dimension", view.strides[last], "1");
  }
  for (std::size_t axis = 0; expected.output && axis <= last; ++axis) {
    if (view.shape[axis] > 1 && view.strides[axis] == 0) {
      fail_argument(std::string(name) + " stride " + std::to_string(axis), std::int64_t{0},
                    "strides other than 0 in a tensor that is written");
    }
  }
}

void check_tensor(std::string_view name, const ConstTensorView& view, std::initializer_list<std::int64_t> shape,
                  const Expected& expected) {
  if (view.absent()) {
    fail_argument(name, "absent", "a tensor " + std::string(dtype_name(expected.dtype)) + shape_text(shape));
  }
  if (!shape_equals(view, shape)) {
    fail_argument(name, view.describe(), "shape " + shape_text(shape));
  }
  if (view.dtype != expected.dtype) {
    fail_argument(std::string(name) + " dtype", dtype_name(view.dtype), dtype_name(expected.dtype));
  }
  if (!(view.device == expected.device)) {
    fail_argument(std::string(name) + " device", device_text(view.device), device_text(expected.device));
  }
  if (view.data == nullptr && view.elements() > 0) {
    fail_argument(std::string(name) + " data", "null", "a pointer to " + std::to_string(view.elements()) + " elements");
  }
  check_strides(name, view, expected);
}

// Tokens-by-heads-by-dim tensors, in the problem's layout.
void check_rows(std::string_view name, const ConstTensorView& view, const Problem& problem, bool query_side,
                std::int64_t dim, const Expected& expected) {
  const std::int64_t heads = query_side ? problem.heads_q : problem.heads_kv;
  if (problem.ragged()) {
    check_tensor(name, view, {query_side ? problem.total_q() : problem.total_k(), heads, dim}, expected);
  } else if (problem.paged() && !query_side) {
    // As many pages as there are; K and V have the same ones.
    check_tensor(name, view, {view.rank == 4 ? view.shape[0] : 1, problem.page_size, heads, dim}, expected);
  } else {
    check_tensor(name, view, {problem.batch, query_side ? problem.seq_q : problem.seq_k, heads, dim}, expected);
  }
}

// LSE, sinks, slopes and their gradients: float32, or float64 in a float64 problem.
DType statistics_dtype(const Problem& problem) {
  return problem.dtype == DType::float64 ? DType::float64 : DType::float32;
}

void check_lse(std::string_view name, const ConstTensorView& view, const Problem& problem, const Device& device,
               bool output) {
  const Expected expected{statistics_dtype(problem), device, true, output};
  if (problem.ragged()) {
    check_tensor(name, view, {problem.heads_q, problem.total_q()}, expected);
  } else {
    check_tensor(name, view, {problem.batch, problem.heads_q, problem.seq_q}, expected);
  }
}

void check_presence(std::string_view name, bool wanted, const ConstTensorView& view, std::string_view field) {
  if (!wanted && !view.absent()) {
    fail_argument(name, view.describe(), "absent, since the problem has no " + std::string(field));
  }
}

void check_score(const Problem& problem, const ScoreTensors& score, const Device& device) {
  check_presence("bias", problem.bias_shape.has_value(), score.bias, "bias_shape");
  if (problem.bias_shape) {
    const auto& shape = *problem.bias_shape;
    check_tensor("bias", score.bias, {shape[0], shape[1], shape[2], shape[3]}, {problem.bias_dtype, device, true});
  }
  check_presence("alibi_slopes", problem.alibi, score.alibi_slopes, "alibi");
  if (problem.alibi && score.alibi_slopes.rank == 2) {
    check_tensor("alibi_slopes", score.alibi_slopes, {problem.batch, problem.heads_q},
                 {statistics_dtype(problem), device, true});
  } else if (problem.alibi) {
    check_tensor("alibi_slopes", score.alibi_slopes, {problem.heads_q}, {statistics_dtype(problem), device, true});
  }
  check_presence("sinks", problem.sinks, score.sinks, "sinks");
  if (problem.sinks) {
    check_tensor("sinks", score.sinks, {problem.heads_q}, {statistics_dtype(problem), device, true});
  }
}

void check_cache(const Problem& problem, const ForwardTensors& tensors, const Device& device) {
  check_presence("key_lengths", problem.lengths_in_tensors, tensors.key_lengths, "lengths_in_tensors");
  if (problem.lengths_in_tensors) {
    check_tensor("key_lengths", tensors.key_lengths, {problem.batch}, {DType::int32, device, true});
  }
  check_presence("page_table", problem.paged(), tensors.page_table, "page_size");
  if (!problem.paged()) {
    return;
  }
  check_tensor("page_table", tensors.page_table, {problem.batch, problem.pages_per_sequence()},
               {DType::int32, device, true});
  if (tensors.v.shape[0] != tensors.k.shape[0]) {
    fail_argument("v", tensors.v.describe(), "as many pages as k, " + std::to_string(tensors.k.shape[0]));
  }
}

void check_dbias(const Problem& problem, const ConstTensorView& dbias, const Device& device) {
  if (dbias.absent()) {
    return;
  }
  if (!problem.bias_shape) {
    fail_argument("dbias", dbias.describe(), "absent, since the problem has no bias_shape");
  }
  if (dbias.rank != 4) {
    fail_argument("dbias", dbias.describe(), "4 dimensions");
  }
  const std::array<std::int64_t, 4> whole{problem.batch, problem.heads_q, problem.seq_q, problem.seq_k};
  for (std::size_t axis = 0; axis < whole.size(); ++axis) {
    if (dbias.shape[axis] != 1 && dbias.shape[axis] != whole[axis]) {
      fail_argument("dbias", dbias.describe(),
                    "extents of 1 or of " + shape_text({whole[0], whole[1], whole[2], whole[3]}));
    }
  }
  const auto& shape = dbias.shape;
  if (dbias.dtype != DType::float32 && dbias.dtype != problem.dtype) {
    fail_argument("dbias dtype", dtype_name(dbias.dtype), "float32 or the problem's dtype");
  }
  check_tensor("dbias", dbias, {shape[0], shape[1], shape[2], shape[3]}, {dbias.dtype, device, true, true});
}

struct Named {
  const char* name;
  ConstTensorView view;
};

// Of outputs that overlap something those that begin where it does, which is how they are passed by mistake. Telling views
// that only touch from others that take turns in one buffer would take a look at every element.
void check_apart(std::span<const Named> inputs, std::span<const Named> outputs) {
  const auto same = [](const Named& a, const Named& b) {
    return a.view.data == b.view.data && a.view.elements() > 0 && b.view.elements() > 0;
  };
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    const auto check = [&](const Named& other) {
      if (same(outputs[n], other)) {
        fail_argument(outputs[n].name, std::string("the memory of ") + other.name, "memory of its own");
      }
    };
    std::for_each(inputs.begin(), inputs.end(), check);
    std::for_each(outputs.begin(), outputs.begin() + static_cast<std::ptrdiff_t>(n), check);
  }
}

}  // namespace

void validate(const Problem& problem, const ForwardTensors& tensors, const Device& device) {
  const Expected input{problem.dtype, device};
  check_rows("q", tensors.q, problem, true, problem.dim_qk, input);
  check_rows("k", tensors.k, problem, false, problem.dim_qk, input);
  check_rows("v", tensors.v, problem, false, problem.dim_v, input);
  check_rows("out", tensors.out, problem, true, problem.dim_v, {problem.out_dtype(), device, false, true});
  if (!tensors.lse.absent()) {
    check_lse("lse", tensors.lse, problem, device, true);
  }
  check_score(problem, tensors.score, device);
  check_cache(problem, tensors, device);
  const std::array inputs{Named{"q", tensors.q}, Named{"k", tensors.k}, Named{"v", tensors.v}};
  const std::array outputs{Named{"out", tensors.out}, Named{"lse", tensors.lse}};
  check_apart(inputs, outputs);
}

void validate(const Problem& problem, const BackwardTensors& tensors, const Device& device) {
  const Expected input{problem.dtype, device};
  const Expected output_side{problem.out_dtype(), device};
  const Expected written{problem.out_dtype(), device, false, true};
  check_rows("q", tensors.q, problem, true, problem.dim_qk, input);
  check_rows("k", tensors.k, problem, false, problem.dim_qk, input);
  check_rows("v", tensors.v, problem, false, problem.dim_v, input);
  check_rows("out", tensors.out, problem, true, problem.dim_v, output_side);
  check_lse("lse", tensors.lse, problem, device, false);
  check_rows("dout", tensors.dout, problem, true, problem.dim_v, output_side);
  if (!tensors.dlse.absent()) {
    check_lse("dlse", tensors.dlse, problem, device, false);
  }
  check_rows("dq", tensors.dq, problem, true, problem.dim_qk, written);
  check_rows("dk", tensors.dk, problem, false, problem.dim_qk, written);
  check_rows("dv", tensors.dv, problem, false, problem.dim_v, written);
  check_score(problem, tensors.score, device);
  check_dbias(problem, tensors.dbias, device);
  if (!tensors.dsinks.absent()) {
    if (!problem.sinks) {
      fail_argument("dsinks", tensors.dsinks.describe(), "absent, since the problem has no sinks");
    }
    check_tensor("dsinks", tensors.dsinks, {problem.heads_q}, {statistics_dtype(problem), device, true, true});
  }
  const std::array inputs{Named{"q", tensors.q},      Named{"k", tensors.k},     Named{"v", tensors.v},
                          Named{"out", tensors.out},  Named{"lse", tensors.lse}, Named{"dout", tensors.dout},
                          Named{"dlse", tensors.dlse}};
  const std::array outputs{Named{"dq", tensors.dq}, Named{"dk", tensors.dk}, Named{"dv", tensors.dv},
                           Named{"dbias", tensors.dbias}, Named{"dsinks", tensors.dsinks}};
  check_apart(inputs, outputs);
}

void validate(const AppendTensors& tensors) {
  const auto& shape = tensors.k.shape;
  for (const auto& [name, view] : {std::pair{"k", &tensors.k}, std::pair{"v", &tensors.v}}) {
    if (view->rank != 4) {
      fail_argument(name, view->describe(), "[batch, tokens, heads_kv, dim]");
    }
  }
  if (tensors.k.dtype == DType::float64 || tensors.k.dtype == DType::int32) {
    fail_argument("k dtype", dtype_name(tensors.k.dtype), "float32, bfloat16, float16");
  }
  const Expected input{tensors.k.dtype, tensors.k.device};
  check_tensor("k", tensors.k, {shape[0], shape[1], shape[2], shape[3]}, input);
  check_tensor("v", tensors.v, {shape[0], shape[1], shape[2], tensors.v.shape[3]}, input);
  const bool paged = !tensors.page_table.absent();
  const TensorView& cache = tensors.k_cache;
  const std::int64_t rows = cache.rank == 4 ? cache.shape[1] : 0;
  const std::int64_t sequences = paged && cache.rank == 4 ? cache.shape[0] : shape[0];
  const Expected output{tensors.k.dtype, tensors.k.device, false, true};
  check_tensor("k_cache", cache, {sequences, rows, shape[2], shape[3]}, output);
  check_tensor("v_cache", tensors.v_cache, {sequences, rows, shape[2], tensors.v.shape[3]}, output);
  const Expected integers{DType::int32, tensors.k.device, true};
  check_tensor("key_lengths", tensors.key_lengths, {shape[0]}, integers);
  if (paged) {
    check_page_size("k_cache: page_size", rows);
    const ConstTensorView& table = tensors.page_table;
    check_tensor("page_table", table, {shape[0], table.rank == 2 ? table.shape[1] : 0}, integers);
  }
}

void validate_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result) {
  const auto check = [&a](const std::string& name, const ConstTensorView& out, const ConstTensorView& lse,
                          bool output) {
    if (out.rank != 3 && out.rank != 4) {
      fail_argument(name + ".out", out.describe(), "[batch, seq, heads, dim] or [total, heads, dim]");
    }
    if (out.dtype == DType::float64) {
      fail_argument(name + ".out dtype", dtype_name(out.dtype), "float32, bfloat16, float16");
    }
    const auto& s = a.out.shape;
    const Device device = a.out.device;
    if (a.out.rank == 3) {
      check_tensor(name + ".out", out, {s[0], s[1], s[2]}, {out.dtype, device, false, output});
      check_tensor(name + ".lse", lse, {s[1], s[0]}, {DType::float32, device, true, output});
    } else {
      check_tensor(name + ".out", out, {s[0], s[1], s[2], s[3]}, {out.dtype, device, false, output});
      check_tensor(name + ".lse", lse, {s[0], s[2], s[1]}, {DType::float32, device, true, output});
    }
  };
  check("a", a.out, a.lse, false);
  check("b", b.out, b.lse, false);
  check("result", result.out, result.lse, true);
}

}  // namespace tessera::internal
