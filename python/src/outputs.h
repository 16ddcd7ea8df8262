// The tensors that a call writes: the caller's, or new ones of the caller's framework.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "tensors.h"
#include "tessera/tessera.h"

namespace tessera::python {

// A new tensor of q's framework and device: `allocate(shape, dtype name)`, or None where the framework is unknown.
class Allocator {
 public:
  Allocator(const nanobind::object& allocate, nanobind::handle like) : allocate_(allocate), like_(like) {}

  bool known() const { return !allocate_.is_none(); }
  nanobind::object operator()(const std::vector<std::int64_t>& shape, std::string_view dtype) const;

 private:
  const nanobind::object& allocate_;
  nanobind::handle like_;
};

// The caller's tensor, or a new one where it is None.
Output given_or_new(const nanobind::object& given, const char* name, const Allocator& allocate,
                    const std::vector<std::int64_t>& shape, DType dtype, const Device& device);
// For the gradient of an optional input: False or None leaves it out, True allocates it, a tensor is written to.
Output optional_output(const nanobind::object& wanted, const char* name, bool has_input, const Allocator& allocate,
                       const std::vector<std::int64_t>& shape, DType dtype, const Device& device);

// Shapes of out, lse and the gradients of q, k and v.
std::vector<std::int64_t> rows(const Problem& problem, bool query_side, std::int64_t heads, std::int64_t dim);
std::vector<std::int64_t> lse_shape(const Problem& problem);
DType statistics_dtype(DType dtype);

// What the two passes write. `wanted` holds dq, dk, dv, dbias and dsinks.
struct ForwardOutputs {
  ForwardOutputs(const Problem& problem, const nanobind::object& given_out, const nanobind::object& given_lse,
                 const Allocator& allocate, const Device& device);
  nanobind::tuple objects() const;
  Output out, lse;
};
struct BackwardOutputs {
  BackwardOutputs(const Problem& problem, const nanobind::dict& wanted, const Allocator& allocate,
                  const Device& device);
  nanobind::tuple objects() const;
  Output dq, dk, dv, dbias, dsinks;
};

}  // namespace tessera::python
