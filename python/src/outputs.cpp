#include "outputs.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>

namespace nb = nanobind;

namespace tessera::python {

nb::object Allocator::operator()(const std::vector<std::int64_t>& shape, std::string_view dtype) const {
  if (!known()) {
    const std::string text = "cannot allocate " + std::string(dtype) + nb::str(nb::cast(shape)).c_str() + " like " +
                             nb::str(like_.type().attr("__name__")).c_str() +
                             "; accepted: NumPy arrays, CuPy arrays, torch tensors, or every output given";
    throw nb::type_error(text.c_str());
  }
  return allocate_(shape, dtype);
}

Output given_or_new(const nb::object& given, const char* name, const Allocator& allocate,
                    const std::vector<std::int64_t>& shape, DType dtype, const Device& device) {
  return output_of(given.is_none() ? allocate(shape, dtype_name(dtype)) : given, name, device);
}

Output optional_output(const nb::object& wanted, const char* name, bool has_input, const Allocator& allocate,
                       const std::vector<std::int64_t>& shape, DType dtype, const Device& device) {
  if (wanted.is_none() || wanted.is(nb::bool_(false))) {
    return {};
  }
  if (!wanted.is(nb::bool_(true))) {
    return output_of(wanted, name, device);
  }
  if (!has_input) {
    throw Error(ErrorCode::invalid_argument,
                std::string(name) + ": True; accepted: False, since the input that it is the gradient of is not given");
  }
  return given_or_new(nb::none(), name, allocate, shape, dtype, device);
}

std::vector<std::int64_t> rows(const Problem& problem, bool query_side, std::int64_t heads, std::int64_t dim) {
  if (problem.ragged()) {
    return {query_side ? problem.total_q() : problem.total_k(), heads, dim};
  }
  return {problem.batch, query_side ? problem.seq_q : problem.seq_k, heads, dim};
}

std::vector<std::int64_t> lse_shape(const Problem& problem) {
  if (problem.ragged()) {
    return {problem.heads_q, problem.total_q()};
  }
  return {problem.batch, problem.heads_q, problem.seq_q};
}

DType statistics_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

ForwardOutputs::ForwardOutputs(const Problem& problem, const nb::object& given_out, const nb::object& given_lse,
                               const Allocator& allocate, const Device& device)
    : out(given_or_new(given_out, "out", allocate, rows(problem, true, problem.heads_q, problem.dim_v),
                       problem.out_dtype(), device)),
      lse(given_or_new(given_lse, "lse", allocate, lse_shape(problem), statistics_dtype(problem.dtype), device)) {}

nb::tuple ForwardOutputs::objects() const { return nb::make_tuple(out.object, lse.object); }

BackwardOutputs::BackwardOutputs(const Problem& problem, const nb::dict& wanted, const Allocator& allocate,
                                 const Device& device) {
  const DType dtype = problem.out_dtype();
  dq = given_or_new(wanted["dq"], "dq", allocate, rows(problem, true, problem.heads_q, problem.dim_qk), dtype, device);
  dk =
      given_or_new(wanted["dk"], "dk", allocate, rows(problem, false, problem.heads_kv, problem.dim_qk), dtype, device);
  dv = given_or_new(wanted["dv"], "dv", allocate, rows(problem, false, problem.heads_kv, problem.dim_v), dtype, device);
  const auto bias_shape = problem.bias_shape.value_or(std::array<std::int64_t, 4>{});
  dbias = optional_output(wanted["dbias"], "dbias", problem.bias_shape.has_value(), allocate,
                          {bias_shape.begin(), bias_shape.end()}, problem.bias_dtype, device);
  dsinks = optional_output(wanted["dsinks"], "dsinks", problem.sinks, allocate, {problem.heads_q},
                           statistics_dtype(problem.dtype), device);
}

nb::tuple BackwardOutputs::objects() const {
  return nb::make_tuple(dq.object, dk.object, dv.object, dbias.object, dsinks.object);
}

}  // namespace tessera::python
