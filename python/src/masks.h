// Masks in Python: the class BlockMask, and what boolean tensors mean.
#pragma once

#include <nanobind/nanobind.h>

namespace tessera::python {

void define_masks(nanobind::module_& module);

}  // namespace tessera::python
