// The keyword options of the Python functions, as a Problem.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <vector>

#include "tessera/tessera.h"

namespace tessera::python {

using Array = nanobind::ndarray<nanobind::ro>;
using MutableArray = nanobind::ndarray<>;

// A view of a DLPack tensor. Errors begin with `name`.
ConstTensorView view_of(const Array& array, const std::string& name);
TensorView view_of(const MutableArray& array, const std::string& name);

// What one call computes. Owns the tensors that `score` points to.
struct Call {
  Problem problem;
  PlanOptions plan;
  ScoreTensors score;
  std::vector<Array> owned;
};

// Throws Error(invalid_argument) that names the argument. `options` holds the keywords of tessera.Options.
Call make_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
               const nanobind::dict& options);

}  // namespace tessera::python
