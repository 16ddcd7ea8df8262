#include "functions.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "refuse.h"
#include "tessera/tessera.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

constexpr const char* kScoreDoc =
    R"(A function of scores: source text in C++, and numbers. Immutable, hashable and picklable.

source  defines: template <class T> T score(T s, tessera::Index i, const float* params)
        s is a score after scale and softcap; what is returned takes its place, before bias and ALiBi. i has batch, head,
        query and key, the positions in the sequence. T is float, double or a dual number of them, which is where
        gradients come from; exp, log, tanh, abs, min, max, select and others are there. Nothing is included.
params  floats, of any shape, that the function reads
name    stands before the line number in compile errors)";

constexpr const char* kMaskDoc =
    R"(A function of which pairs attend: source text in C++, and numbers. Immutable, hashable and picklable.

source  defines: bool keep(tessera::Index i)  or  bool keep(tessera::Index i, const float* params)
        i has batch, head, query and key. It is evaluated once for all pairs, on the host; blocks that it hides cost
        nothing
params  floats, of any shape, that the function reads
name    stands before the line number in compile errors)";

// Any sequence of numbers; arrays and tensors of any framework and shape.
std::vector<float> params_of(nb::object params) {
  if (params.is_none()) {
    return {};
  }
  if (nb::hasattr(params, "reshape")) {
    params = params.attr("reshape")(-1).attr("tolist")();
  }
  std::vector<double> numbers;
  if (!nb::try_cast<std::vector<double>>(params, numbers)) {
    refuse("params", nb::repr(params).c_str(), "a sequence or an array of numbers");
  }
  std::vector<float> result(numbers.size());
  for (std::size_t n = 0; n < numbers.size(); ++n) {
    result[n] = static_cast<float>(numbers[n]);
    if (std::isinf(result[n]) && !std::isinf(numbers[n])) {
      refuse("params[" + std::to_string(n) + "]", nb::repr(nb::float_(numbers[n])).c_str(), "numbers of float32");
    }
  }
  return result;
}

// The name, the source and the parameters, which hold no zero characters but in the last.
nb::bytes bytes_of(const UserFunction& function) {
  std::string bytes = function.name() + '\0' + function.source() + '\0';
  const std::vector<float>& params = function.params();
  bytes.append(reinterpret_cast<const char*>(params.data()), params.size() * sizeof(float));
  return nb::bytes(bytes.data(), bytes.size());
}

template <class Function>
Function function_of(const nb::bytes& data) {
  const std::string_view bytes(static_cast<const char*>(data.data()), data.size());
  const std::size_t name = bytes.find('\0');
  const std::size_t source = name == std::string_view::npos ? name : bytes.find('\0', name + 1);
  if (source == std::string_view::npos || (bytes.size() - source - 1) % sizeof(float) != 0) {
    throw Error(ErrorCode::invalid_argument,
                "data: " + std::to_string(bytes.size()) + " bytes; accepted: what to_bytes() returned");
  }
  std::vector<float> params((bytes.size() - source - 1) / sizeof(float));
  std::memcpy(params.data(), bytes.data() + source + 1, params.size() * sizeof(float));
  return Function(std::string(bytes.substr(name + 1, source - name - 1)), std::move(params),
                  std::string(bytes.substr(0, name)));
}

template <class Function>
void define(nb::module_& module, const char* type, const char* doc, const char* default_name) {
  nb::class_<Function>(module, type, doc)
      .def(
          "__init__",
          [](Function* self, std::string source, const nb::object& params, std::string name) {
            new (self) Function(std::move(source), params_of(params), std::move(name));
          },
          nb::arg("source"), nb::arg("params").none() = nb::none(), nb::kw_only(), nb::arg("name") = default_name)
      .def_prop_ro("source", &Function::source)
      .def_prop_ro("params", [](const Function& self) { return nb::tuple(nb::cast(self.params())); })
      .def_prop_ro("name", &Function::name)
      .def_prop_ro("hash", &Function::hash)
      .def_prop_ro("depends_on_batch", &Function::depends_on_batch)
      .def_prop_ro("depends_on_head", &Function::depends_on_head)
      .def("to_bytes", [](const Function& self) { return bytes_of(self); })
      .def_static("from_bytes", &function_of<Function>, nb::arg("data"))
      .def("__getstate__", [](const Function& self) { return bytes_of(self); })
      .def("__setstate__",
           [](Function& self, const nb::bytes& bytes) { new (&self) Function(function_of<Function>(bytes)); })
      .def("__eq__",
           [](const Function& self, const nb::object& other) {
             return nb::isinstance<Function>(other) && self == nb::cast<const Function&>(other);
           })
      .def("__hash__", [](const Function& self) { return nb::hash(nb::cast(self.hash())); })
      .def("__repr__", &Function::describe);
}

}  // namespace

void define_functions(nb::module_& module) {
  define<ScoreFunction>(module, "ScoreFunction", kScoreDoc, "score_function");
  define<MaskFunction>(module, "MaskFunction", kMaskDoc, "mask_function");
}

}  // namespace tessera::python
