// tessera._tessera: the functions that the package wraps. Shapes, strides and dtypes are checked by the library alone.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "call_table.h"
#include "distributed.h"
#include "functions.h"
#include "masks.h"
#include "options.h"
#include "outputs.h"
#include "plan_cache.h"
#include "prepared.h"
#include "tensors.h"
#include "tessera/tessera.h"
#include "workspace_pool.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

PlanCache& plan_cache() {
  static PlanCache cache;
  return cache;
}

WorkspacePool& workspaces() {
  static WorkspacePool pool;
  return pool;
}

// The framework's own allocator knows the stream, also in a graph that is captured, and keeps memory for the next call.
// Its memory may be given back as soon as the kernels are enqueued.
template <class Tensors>
void run_on_gpu(const Plan& plan, const Tensors& tensors, const Allocator& allocate, const Call& call) {
  std::span<std::byte> workspace;
  Output memory;
  if (plan.workspace_bytes() > 0 && allocate.known()) {
    const std::int64_t floats = (plan.workspace_bytes() + 3) / 4;
    memory = output_of(allocate({floats}, "float32"), "workspace", call.plan.device);
    workspace = {static_cast<std::byte*>(memory.view.data), static_cast<std::size_t>(floats) * 4};
  }
  const nb::gil_scoped_release release;
  plan.run(tensors, workspace, call.stream);
}

// Waits for no other call: runs with a workspace of its own and without the interpreter lock.
template <class Tensors>
void run(const Plan& plan, const Tensors& tensors, const Allocator& allocate, const Call& call) {
  if (call.plan.device.kind == DeviceKind::cuda) {
    run_on_gpu(plan, tensors, allocate, call);
    return;
  }
  const nb::gil_scoped_release release;
  const auto workspace = workspaces().lease(plan.workspace_bytes());
  plan.run(tensors, workspace.bytes());
}

void translate(const std::exception_ptr& pointer, void* /*payload*/) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    PyObject* type = PyExc_RuntimeError;
    switch (error.code()) {
      case ErrorCode::invalid_argument:
        type = PyExc_ValueError;
        break;
      case ErrorCode::unsupported:
        type = PyExc_NotImplementedError;
        break;
      case ErrorCode::io:
        type = PyExc_OSError;
        break;
      case ErrorCode::peer:
        type = PyExc_ConnectionError;
        break;
      case ErrorCode::device:
      case ErrorCode::internal:
        break;
    }
    PyErr_SetString(type, error.what());
  }
}

// q, k and v, all where q is, and what is to be computed of them.
struct Inputs {
  Inputs(nb::handle q_, nb::handle k_, nb::handle v_, const nb::dict& options)
      : q(input_of(q_, "q")),
        k(input_of(k_, "k", q.view.device)),
        v(input_of(v_, "v", q.view.device)),
        call(make_call(q.view, k.view, v.view, options)) {}

  Input q, k, v;
  Call call;
};

nb::tuple forward(nb::handle q, nb::handle k, nb::handle v, const nb::object& out, const nb::object& lse,
                  const nb::object& allocate_like_q, const nb::dict& options) {
  Inputs inputs(q, k, v, options);
  inputs.call.plan.deterministic = true;  // nothing in this pass that it would change
  const Problem& problem = inputs.call.problem;
  const Device& device = inputs.call.plan.device;
  const Allocator allocate(allocate_like_q, q);
  const auto plan = plan_cache().get(problem, Pass::forward, inputs.call.plan);

  ForwardTensors tensors;
  tensors.q = inputs.q.view;
  tensors.k = inputs.k.view;
  tensors.v = inputs.v.view;
  const ForwardOutputs outputs(problem, out, lse, allocate, device);
  tensors.out = outputs.out.view;
  tensors.lse = outputs.lse.view;
  tensors.score = inputs.call.score;
  tensors.key_lengths = inputs.call.key_lengths;
  tensors.page_table = inputs.call.page_table;
  run(*plan, tensors, allocate, inputs.call);
  return outputs.objects();
}

void append(nb::handle k, nb::handle v, const nb::object& k_cache, const nb::object& v_cache, nb::handle lengths,
            nb::handle page_table, std::optional<std::uintptr_t> stream) {
  const Input k_ = input_of(k, "k");
  const Device device = k_.view.device;
  const Input v_ = input_of(v, "v", device);
  const Output k_cache_ = output_of(k_cache, "k_cache", device);
  const Output v_cache_ = output_of(v_cache, "v_cache", device);
  const Input lengths_ = input_of(lengths, "lengths", device);
  const Input table = page_table.is_none() ? Input{} : input_of(page_table, "page_table", device);
  const nb::gil_scoped_release release;
  append_keys({k_.view, v_.view, k_cache_.view, v_cache_.view, lengths_.view, table.view},
              reinterpret_cast<void*>(stream.value_or(0)));
}

nb::tuple backward(nb::handle dout, nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
                   nb::handle dlse, const nb::dict& wanted, const nb::object& allocate_like_q,
                   const nb::dict& options) {
  const Inputs inputs(q, k, v, options);
  const Problem& problem = inputs.call.problem;
  const Device& device = inputs.call.plan.device;
  const Allocator allocate(allocate_like_q, q);
  const Input o = input_of(out, "out", device);
  const Input l = input_of(lse, "lse", device);
  const Input d = input_of(dout, "dout", device);
  const Input dl = dlse.is_none() ? Input{} : input_of(dlse, "dlse", device);
  const auto plan = plan_cache().get(problem, Pass::backward, inputs.call.plan);

  const BackwardOutputs outputs(problem, wanted, allocate, device);
  const BackwardTensors tensors{inputs.q.view,
                                inputs.k.view,
                                inputs.v.view,
                                o.view,
                                l.view,
                                d.view,
                                dl.view,
                                outputs.dq.view,
                                outputs.dk.view,
                                outputs.dv.view,
                                outputs.dbias.view,
                                outputs.dsinks.view,
                                inputs.call.score};
  run(*plan, tensors, allocate, inputs.call);
  return outputs.objects();
}

// A pass that runs again and again on tensors like these; without `dout` the forward one.
Prepared prepare(nb::handle q, nb::handle k, nb::handle v, nb::handle dout, const nb::dict& options) {
  Inputs inputs(q, k, v, options);
  if (dout.is_none()) {
    inputs.call.plan.deterministic = true;
    return {plan_cache().get(inputs.call.problem, Pass::forward, inputs.call.plan), inputs.q.view, inputs.k.view,
            inputs.v.view};
  }
  const Input d = input_of(dout, "dout", inputs.call.plan.device);
  return {plan_cache().get(inputs.call.problem, Pass::backward, inputs.call.plan), inputs.q.view, inputs.k.view,
          inputs.v.view, d.view};
}

nb::tuple merge_partials(nb::handle out_a, nb::handle lse_a, nb::handle out_b, nb::handle lse_b, const nb::object& out,
                         const nb::object& lse, const nb::object& allocate_like_a) {
  const Input o_a = input_of(out_a, "out_a");
  const Device device = o_a.view.device;
  const Input l_a = input_of(lse_a, "lse_a", device);
  const Input o_b = input_of(out_b, "out_b", device);
  const Input l_b = input_of(lse_b, "lse_b", device);
  const Allocator allocate(allocate_like_a, out_a);
  const auto shape_of = [](const ConstTensorView& view) {
    return std::vector<std::int64_t>(view.shape.begin(), view.shape.begin() + view.rank);
  };
  const Output o = given_or_new(out, "out", allocate, shape_of(o_a.view), o_a.view.dtype, device);
  const Output l = given_or_new(lse, "lse", allocate, shape_of(l_a.view), l_a.view.dtype, device);
  {
    const nb::gil_scoped_release release;
    merge({o_a.view, l_a.view}, {o_b.view, l_b.view}, {o.view, l.view});
  }
  return nb::make_tuple(o.object, l.object);
}

std::string explain(nb::handle q, nb::handle k, nb::handle v, bool backward_pass, const nb::dict& options) {
  const Call call = Inputs(q, k, v, options).call;
  return plan_cache().get(call.problem, backward_pass ? Pass::backward : Pass::forward, call.plan)->explain();
}

nb::dict cuda_facts() {
  const CudaInfo cuda = cuda_info();
  nb::list devices;
  for (const CudaDeviceInfo& device : cuda.devices) {
    nb::dict row;
    row["index"] = device.index;
    row["name"] = device.name;
    row["capability"] = nb::make_tuple(device.capability_major, device.capability_minor);
    row["multiprocessors"] = device.multiprocessors;
    row["memory_bytes"] = device.memory_bytes;
    row["l2_bytes"] = device.l2_bytes;
    devices.append(row);
  }
  nb::dict result;
  result["unavailable"] = cuda.unavailable.empty() ? nb::object(nb::none()) : nb::cast(cuda.unavailable);
  result["driver"] = cuda.driver.empty() ? nb::object(nb::none()) : nb::cast(cuda.driver);
  result["devices"] = devices;
  return result;
}

nb::dict info() {
  const CpuInfo cpu = cpu_info();
  nb::list impls;
  for (const ImplInfo& impl : implementations()) {
    nb::dict row;
    row["name"] = impl.name;
    row["summary"] = impl.summary;
    row["available"] = impl.available;
    row["reason"] = impl.reason;
    impls.append(row);
  }
  nb::dict result;
  result["cuda"] = cuda_facts();
  result["version"] = kVersion;
  result["isas"] = cpu.isas;
  result["selected_isa"] = cpu.selected_isa;
  result["threads"] = cpu.threads;
  result["impls"] = impls;
  result["idle_workspace_bytes"] = workspaces().idle_bytes();
  return result;
}

}  // namespace

}  // namespace tessera::python

NB_MODULE(_tessera, module) {
  namespace tp = tessera::python;
  nb::register_exception_translator(tp::translate);
  tp::define_masks(module);
  tp::define_functions(module);
  nb::class_<tp::Prepared>(module, "Prepared")
      .def_prop_ro("lse_shape", &tp::Prepared::lse_shape)
      .def_prop_ro("workspace_bytes", &tp::Prepared::workspace_bytes)
      .def("forward", &tp::Prepared::forward, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
           nb::arg("lse").none(), nb::arg("workspace").none(), nb::arg("stream"))
      .def("backward", &tp::Prepared::backward, nb::arg("dout"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("out"), nb::arg("lse"), nb::arg("dq"), nb::arg("dk"), nb::arg("dv"), nb::arg("workspace").none(),
           nb::arg("stream"));
  nb::class_<tp::CallTable>(module, "CallTable")
      .def(nb::init<>())
      .def("find", &tp::CallTable::find)
      .def("add", &tp::CallTable::add);
  module.def("prepare", &tp::prepare, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("dout").none(),
             nb::arg("options"));
  module.def("forward", &tp::forward, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out").none(),
             nb::arg("lse").none(), nb::arg("allocate").none(), nb::arg("options"));
  module.def("backward", &tp::backward, nb::arg("dout"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
             nb::arg("lse"), nb::arg("dlse").none(), nb::arg("wanted"), nb::arg("allocate").none(), nb::arg("options"));
  module.def("append_keys", &tp::append, nb::arg("k"), nb::arg("v"), nb::arg("k_cache"), nb::arg("v_cache"),
             nb::arg("lengths"), nb::arg("page_table").none(), nb::arg("stream").none());
  module.def("merge", &tp::merge_partials, nb::arg("out_a"), nb::arg("lse_a"), nb::arg("out_b"), nb::arg("lse_b"),
             nb::arg("out").none(), nb::arg("lse").none(), nb::arg("allocate").none());
  module.def("explain", &tp::explain, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("backward"),
             nb::arg("options"));
  tp::define_distributed(module);
  // By itself: info() starts the driver, which must not happen by an import, since a process that forks later would lose it.
  module.attr("version") = tessera::kVersion;
  module.def("info", &tp::info);
  module.def("free_workspaces", [] { tp::workspaces().clear(); });
}
