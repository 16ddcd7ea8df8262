// The keyword options of the Python functions, as a Problem.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "tensors.h"
#include "tessera/tessera.h"

namespace tessera::python {

// What one call computes, and where. Owns the tensors that `score` points to.
struct Call {
  Problem problem;
  PlanOptions plan;
  void* stream = nullptr;
  ScoreTensors score;
  ConstTensorView key_lengths;  // of a cache
  ConstTensorView page_table;
  std::vector<Input> owned;
};

// Throws Error(invalid_argument) that names the argument. `options` holds the keywords of tessera.Options. The plan's
// device is that of q.
Call make_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
               const nanobind::dict& options);

}  // namespace tessera::python
