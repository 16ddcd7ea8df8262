// Tensors that Python hands over, as views.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>

#include "tessera/tensor_view.h"

namespace tessera::python {

using Array = nanobind::ndarray<nanobind::ro>;
using MutableArray = nanobind::ndarray<>;

// A tensor that is read, and what keeps its memory. Without a tensor the view is absent.
struct Input {
  ConstTensorView view;
  nanobind::object owner;
  Array array;
};

// A tensor that is written, likewise.
struct Output {
  nanobind::object object = nanobind::none();
  TensorView view;
  MutableArray array;
};

// Throw TypeError for what is no tensor, and Error(invalid_argument) that begins with `name` for a tensor that Tessera
// does not have or one that is not on `device`, where it is given.
Input input_of(nanobind::handle object, const char* name, const std::optional<Device>& device = std::nullopt);
Output output_of(const nanobind::object& object, const char* name, const Device& device);

// A torch tensor that Tessera has; nothing for anything else.
std::optional<TensorView> torch_tensor(nanobind::handle object);

// Of a torch tensor's first element.
void* torch_address(nanobind::handle tensor);

// "cpu" or "cuda:0".
std::string device_name(const Device& device);

}  // namespace tessera::python
