// Attention over ranks, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace tessera::python {

void define_distributed(nanobind::module_& module);

}  // namespace tessera::python
