#include "tensors.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "exchange.h"
#include "refuse.h"
#include "tessera/dlpack.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

nb::object interned(const char* text) { return nb::steal(PyUnicode_InternFromString(text)); }

// The names and types of torch that reading its tensors takes. torch is not linked.
struct Torch {
  explicit Torch(nb::object tensor_type) : tensor(std::move(tensor_type)) {}

  // Nothing as long as nobody has imported torch.
  static const Torch* imported();

  nb::object tensor;
  const ExchangeApi* exchange = exchange_api(tensor);
  nb::object is_cuda = interned("is_cuda");
  nb::object dtype = interned("dtype");
  nb::object get_device = interned("get_device");
  nb::object data_ptr = interned("data_ptr");
  nb::object shape = interned("shape");
  nb::object stride = interned("stride");
  std::array<std::pair<nb::object, DType>, 5> dtypes{};
};

const Torch* Torch::imported() {
  static const Torch* known = nullptr;
  if (known != nullptr) {
    return known;
  }
  static const nb::object& name = *new nb::object(interned("torch"));
  const nb::object module = nb::steal(PyImport_GetModule(name.ptr()));
  if (!module.is_valid() || !nb::hasattr(module, "Tensor") || !nb::hasattr(module, "bfloat16")) {
    PyErr_Clear();
    return nullptr;
  }
  auto* found = new Torch(module.attr("Tensor"));  // as long as the interpreter
  found->dtypes = {{{module.attr("bfloat16"), DType::bfloat16},
                    {module.attr("float16"), DType::float16},
                    {module.attr("float32"), DType::float32},
                    {module.attr("float64"), DType::float64},
                    {module.attr("int32"), DType::int32}}};
  known = found;
  return known;
}

nb::object attribute(nb::handle object, const nb::object& name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name.ptr());
  if (value == nullptr) {
    nb::raise_python_error();
  }
  return nb::steal(value);
}

nb::object called(nb::handle object, const nb::object& method) {
  PyObject* value = PyObject_CallMethodObjArgs(object.ptr(), method.ptr(), nullptr);
  if (value == nullptr) {
    nb::raise_python_error();
  }
  return nb::steal(value);
}

bool is_torch_cuda(const Torch* torch, nb::handle object) {
  return torch != nullptr && PyObject_IsInstance(object.ptr(), torch->tensor.ptr()) == 1 &&
         attribute(object, torch->is_cuda).is(nb::bool_(true));
}

DType torch_dtype(const Torch& torch, nb::handle tensor, const std::string& name) {
  const nb::object dtype = attribute(tensor, torch.dtype);
  for (const auto& [known, value] : torch.dtypes) {
    if (dtype.is(known)) {
      return value;
    }
  }
  refuse(name + " dtype", nb::str(dtype).c_str(), "float32, float64, float16, bfloat16 and int32");
}

// By functions alone, in tens of nanoseconds. Nothing for what is no torch tensor of this very type, which DLPack asks for,
// for what Tessera does not have, and where torch has no such functions: other ways take it, or say why not.
std::optional<TensorView> exchanged(const Torch* torch, nb::handle object) {
  if (torch == nullptr || torch->exchange == nullptr || !object.type().is(torch->tensor)) {
    return std::nullopt;
  }
  nb::dlpack::dltensor tensor{};
  if (torch->exchange->tensor_from_object(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  try {
    return from_dlpack(tensor);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// By attributes, for torch before 2.10, whose side of DLPack is Python code that takes microseconds and insists on the
// current device.
TensorView torch_view(const Torch& torch, nb::handle tensor, const std::string& name) {
  TensorView view;
  view.dtype = torch_dtype(torch, tensor, name);
  view.device = {DeviceKind::cuda, nb::cast<std::int32_t>(called(tensor, torch.get_device))};
  const nb::object shape = attribute(tensor, torch.shape);
  const nb::object strides = called(tensor, torch.stride);
  const std::size_t rank = nb::len(shape);
  if (rank < 1 || rank > kMaxRank) {
    refuse(name + " rank", std::to_string(rank), "1 to " + std::to_string(kMaxRank));
  }
  view.rank = static_cast<int>(rank);
  for (std::size_t axis = 0; axis < rank; ++axis) {
    view.shape[axis] = nb::cast<std::int64_t>(nb::handle(PyTuple_GetItem(shape.ptr(), static_cast<Py_ssize_t>(axis))));
    view.strides[axis] =
        nb::cast<std::int64_t>(nb::handle(PyTuple_GetItem(strides.ptr(), static_cast<Py_ssize_t>(axis))));
  }
  view.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(called(tensor, torch.data_ptr)));
  return view;
}

template <class NbArray>
TensorView dlpack_view(const NbArray& array, const std::string& name) {
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

void require_device(const ConstTensorView& view, const std::string& name, const Device& device) {
  if (!(view.device == device)) {
    refuse(name + " device", device_name(view.device), device_name(device) + ", where q is");
  }
}

}  // namespace

std::optional<TensorView> torch_tensor(nb::handle object) {
  const Torch* torch = Torch::imported();
  if (auto view = exchanged(torch, object)) {
    return view;
  }
  try {
    return is_torch_cuda(torch, object) ? std::optional(torch_view(*torch, object, "")) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

void* torch_address(nb::handle tensor) {
  const Torch* torch = Torch::imported();
  if (const auto view = exchanged(torch, tensor)) {
    return view->data;
  }
  return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(called(tensor, interned("data_ptr"))));
}

std::string device_name(const Device& device) {
  return device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

Input input_of(nb::handle object, const char* name, const std::optional<Device>& device) {
  Input input;
  const Torch* torch = Torch::imported();
  if (const auto view = exchanged(torch, object)) {
    input.view = *view;
    input.owner = nb::borrow(object);
  } else if (is_torch_cuda(torch, object)) {
    input.view = torch_view(*torch, object, name);
    input.owner = nb::borrow(object);
  } else if (nb::try_cast<Array>(object, input.array)) {
    input.view = dlpack_view(input.array, name);
  } else {
    throw nb::type_error(
        (std::string(name) + ": " + nb::type_name(object.type()).c_str() + "; accepted: a DLPack tensor").c_str());
  }
  if (device) {
    require_device(input.view, name, *device);
  }
  return input;
}

Output output_of(const nb::object& object, const char* name, const Device& device) {
  Output output;
  output.object = object;
  const Torch* torch = Torch::imported();
  if (const auto view = exchanged(torch, object)) {
    output.view = *view;
  } else if (is_torch_cuda(torch, object)) {
    output.view = torch_view(*torch, object, name);
  } else if (nb::try_cast<MutableArray>(object, output.array)) {
    output.view = dlpack_view(output.array, name);
  } else {
    refuse(name, nb::type_name(object.type()).c_str(), "a DLPack tensor that can be written");
  }
  require_device(output.view, name, device);
  return output;
}

}  // namespace tessera::python
