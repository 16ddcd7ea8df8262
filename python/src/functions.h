// tessera.ScoreFunction and tessera.MaskFunction.
#pragma once

#include <nanobind/nanobind.h>

namespace tessera::python {

void define_functions(nanobind::module_& module);

}  // namespace tessera::python
