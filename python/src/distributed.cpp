#include "distributed.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "outputs.h"
#include "rank_call.h"
#include "rank_group.h"
#include "refuse.h"
#include "tensors.h"
#include "tessera/nccl.h"
#include "tessera/sequence_layout.h"
#include "tessera/tcp.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

CommunicatorOptions communicator_options(double timeout_seconds) {
  if (!(timeout_seconds >= 1e-3 && timeout_seconds <= 1e9)) {
    refuse("timeout", std::to_string(timeout_seconds), "0.001 to 1e9 seconds");
  }
  return {std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(timeout_seconds * 1e3)))};
}

// The index of a CUDA device, or none for the CPU.
using DeviceIndex = std::optional<int>;

Device device_of(const DeviceIndex& index) {
  return index ? Device{DeviceKind::cuda, static_cast<std::int32_t>(*index)} : Device{};
}

std::vector<std::unique_ptr<RankGroup>> local_groups(const std::vector<DeviceIndex>& indices, double timeout) {
  std::vector<Device> devices;
  devices.reserve(indices.size());
  for (const DeviceIndex& index : indices) {
    devices.push_back(device_of(index));
  }
  std::vector<std::unique_ptr<RankGroup>> groups;
  for (auto& communicator : local_communicators(devices, communicator_options(timeout))) {
    groups.push_back(std::make_unique<RankGroup>(std::move(communicator)));
  }
  return groups;
}

DeviceTransport transport_of(const std::string& name) {
  return name == "copy"     ? DeviceTransport::copy
         : name == "nccl"   ? DeviceTransport::nccl
         : name == "staged" ? DeviceTransport::staged
                            : DeviceTransport::automatic;
}

std::unique_ptr<RankGroup> meet(int rank, int ranks, const std::string& address, int port, const std::string& file,
                                int listener, double timeout, const DeviceIndex& device, const std::string& transport) {
  TcpOptions options;
  options.rank = rank;
  options.ranks = ranks;
  options.address = address;
  options.port = port;
  options.file = file;
  options.listener = listener;
  options.communicator = communicator_options(timeout);
  const nb::gil_scoped_release release;
  auto communicator = tcp_communicator(options);
  if (device) {
    communicator = device_communicator(std::move(communicator), {device_of(device), options.communicator},
                                       transport_of(transport));
  }
  return std::make_unique<RankGroup>(std::move(communicator));
}

nb::tuple environment() {
  const TcpOptions options = tcp_options_from_environment();
  return nb::make_tuple(options.rank, options.ranks, options.address, options.port);
}

// What this rank cannot take is told to the others, who wait for it.
template <class Prepare>
auto prepared_or_declined(RankGroup& group, const Prepare& prepare) {
  const auto decline = [&](const std::string& text) {
    const nb::gil_scoped_release release;
    group.decline(text);
  };
  try {
    return prepare();
  } catch (const std::exception& error) {
    decline(error.what());
    throw;
  }
}

struct ForwardPass {
  RankCall call;
  Request request;
  ForwardOutputs outputs;
  ForwardTensors tensors;
};

nb::tuple forward(RankGroup& group, nb::handle q, nb::handle k, nb::handle v, const nb::object& out,
                  const nb::object& lse, const nb::object& allocate_like_q, const nb::dict& options,
                  const nb::dict& ring) {
  auto pass = prepared_or_declined(group, [&] {
    RankCall call(group, q, k, v, options);
    Request request = request_of(call, Pass::forward, ring);
    ForwardOutputs outputs(call.shapes(), out, lse, Allocator(allocate_like_q, q), group.device());
    ForwardTensors tensors;
    tensors.q = call.view(call.q.view);
    tensors.k = call.view(call.k.view);
    tensors.v = call.view(call.v.view);
    tensors.out = call.view(outputs.out.view);
    tensors.lse = call.view(outputs.lse.view);
    tensors.score = call.call.score;
    return ForwardPass{std::move(call), std::move(request), std::move(outputs), tensors};
  });
  std::uint64_t seed = 0;
  {
    const nb::gil_scoped_release release;
    seed = group.run(pass.request, pass.tensors, pass.call.call.stream).seed;
  }
  return nb::make_tuple(pass.outputs.out.object, pass.outputs.lse.object, seed);
}

struct BackwardPass {
  RankCall call;
  Request request;
  std::vector<Input> inputs;
  BackwardOutputs outputs;
  BackwardTensors tensors;
};

nb::tuple backward(RankGroup& group, nb::handle dout, nb::handle q, nb::handle k, nb::handle v, nb::handle out,
                   nb::handle lse, nb::handle dlse, const nb::dict& wanted, const nb::object& allocate_like_q,
                   const nb::dict& options, const nb::dict& ring) {
  const auto pass = prepared_or_declined(group, [&] {
    RankCall call(group, q, k, v, options);
    Request request = request_of(call, Pass::backward, ring);
    std::vector<Input> inputs;
    inputs.push_back(input_of(out, "out", group.device()));
    inputs.push_back(input_of(lse, "lse", group.device()));
    inputs.push_back(input_of(dout, "dout", group.device()));
    inputs.push_back(dlse.is_none() ? Input{} : input_of(dlse, "dlse", group.device()));
    BackwardOutputs outputs(call.shapes(), wanted, Allocator(allocate_like_q, q), group.device());
    const BackwardTensors tensors{call.view(call.q.view),
                                  call.view(call.k.view),
                                  call.view(call.v.view),
                                  call.view(inputs[0].view),
                                  call.view(inputs[1].view),
                                  call.view(inputs[2].view),
                                  call.view(inputs[3].view),
                                  call.view(outputs.dq.view),
                                  call.view(outputs.dk.view),
                                  call.view(outputs.dv.view),
                                  outputs.dbias.view,
                                  outputs.dsinks.view,
                                  call.call.score};
    return BackwardPass{std::move(call), std::move(request), std::move(inputs), std::move(outputs), tensors};
  });
  {
    const nb::gil_scoped_release release;
    group.run(pass.request, pass.tensors, pass.call.call.stream);
  }
  return pass.outputs.objects();
}

nb::dict facts_of(const DistributedFacts& facts) {
  nb::dict row;
  row["schedule"] = std::string(schedule_name(facts.schedule));
  row["queries_travel"] = facts.queries_travel;
  row["queries"] = facts.queries;
  row["keys"] = facts.keys;
  row["steps_computed"] = facts.steps_computed;
  row["tiles"] = facts.tiles.full + facts.tiles.partial;
  row["flops"] = facts.flops_of_pairs;
  row["bytes_sent"] = facts.bytes_sent;
  row["bytes_sent_to_nodes"] = facts.bytes_sent_to_nodes;
  return row;
}

nb::list facts(RankGroup& group, nb::handle q, nb::handle k, nb::handle v, bool backward_pass, const nb::dict& options,
               const nb::dict& ring) {
  const Request request = prepared_or_declined(group, [&] {
    const RankCall call(group, q, k, v, options);
    return request_of(call, backward_pass ? Pass::backward : Pass::forward, ring);
  });
  std::vector<DistributedFacts> all;
  {
    const nb::gil_scoped_release release;
    all = group.facts(request);
  }
  nb::list rows;
  for (const DistributedFacts& one : all) {
    rows.append(facts_of(one));
  }
  return rows;
}

nb::list gather(RankGroup& group, const nb::bytes& mine) {
  std::vector<std::vector<std::byte>> all;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(mine.data()), mine.size());
  {
    const nb::gil_scoped_release release;
    all = group.gather(bytes);
  }
  nb::list result;
  for (const auto& theirs : all) {
    result.append(nb::bytes(theirs.data(), theirs.size()));
  }
  return result;
}

// (begin, count, stride) of each piece.
nb::list pieces(const std::string& layout, std::int64_t length, int ranks, int rank) {
  nb::list result;
  for (const Stripe& piece : SequenceLayout(layout_kind(layout), length, ranks).pieces(rank)) {
    result.append(nb::make_tuple(piece.begin, piece.count, piece.stride));
  }
  return result;
}

std::string device_text(const RankGroup& group) { return device_name(group.device()); }

}  // namespace

void define_distributed(nb::module_& module) {
  nb::class_<RankGroup>(module, "RankGroup")
      .def_static("local", &local_groups, nb::arg("devices"), nb::arg("timeout"))
      .def_static("meet", &meet, nb::arg("rank"), nb::arg("ranks"), nb::arg("address"), nb::arg("port"),
                  nb::arg("file"), nb::arg("listener"), nb::arg("timeout"), nb::arg("device").none(),
                  nb::arg("transport"))
      .def_prop_ro("rank", &RankGroup::rank)
      .def_prop_ro("size", &RankGroup::size)
      .def_prop_ro("transport", &RankGroup::transport)
      .def_prop_ro("device", &device_text)
      .def_prop_ro("failure", &RankGroup::failure, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("memory_bytes", &RankGroup::memory_bytes, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro(
          "bytes_sent", [](const RankGroup& group) { return group.traffic().bytes_sent; },
          nb::call_guard<nb::gil_scoped_release>())
      .def("forward", &forward, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out").none(), nb::arg("lse").none(),
           nb::arg("allocate").none(), nb::arg("options"), nb::arg("ring"))
      .def("backward", &backward, nb::arg("dout"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
           nb::arg("lse"), nb::arg("dlse").none(), nb::arg("wanted"), nb::arg("allocate").none(), nb::arg("options"),
           nb::arg("ring"))
      .def("facts", &facts, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("backward"), nb::arg("options"),
           nb::arg("ring"))
      .def("gather", &gather, nb::arg("mine"))
      .def("decline", &RankGroup::decline, nb::arg("text"), nb::call_guard<nb::gil_scoped_release>())
      .def("abort", &RankGroup::abort, nb::arg("reason"), nb::call_guard<nb::gil_scoped_release>())
      .def("forget_plans", &RankGroup::forget_plans, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &RankGroup::close, nb::call_guard<nb::gil_scoped_release>());
  module.def("rank_environment", &environment);
  module.def("layout_pieces", &pieces, nb::arg("layout"), nb::arg("length"), nb::arg("ranks"), nb::arg("rank"));
}

}  // namespace tessera::python
