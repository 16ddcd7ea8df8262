#include "rank_call.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "refuse.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

using Lengths = std::vector<std::int64_t>;

// The value of an enumeration by the name that `name_of` gives it.
template <class Kind, class NameOf>
Kind named(const char* argument, const std::string& name, const std::vector<Kind>& kinds, const NameOf& name_of) {
  std::string accepted;
  for (const Kind kind : kinds) {
    if (name == name_of(kind)) {
      return kind;
    }
    accepted += (accepted.empty() ? "\"" : ", \"") + std::string(name_of(kind)) + "\"";
  }
  refuse(argument, "\"" + name + "\"", accepted);
}

RingSchedule schedule_of(const std::string& name) {
  using Schedule = RingSchedule;
  const std::vector<Schedule> all{Schedule::automatic, Schedule::ring, Schedule::burst, Schedule::double_ring};
  return named("schedule", name, all, schedule_name);
}

template <class Value>
Value ring_option(const nb::dict& ring, const char* name, const char* accepted) {
  const nb::object given = ring[name];
  Value value{};
  if (!nb::try_cast<Value>(given, value)) {
    refuse(name, nb::repr(given).c_str(), accepted);
  }
  return value;
}

// One number for each token: that of its document.
std::vector<std::int32_t> document_ids(const char* name, const std::vector<std::int64_t>& starts) {
  if (starts.empty() || starts.front() != 0 || !std::is_sorted(starts.begin(), starts.end())) {
    refuse(name, "numbers that do not begin with 0 or that decrease", "the documents' cumulative lengths");
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(starts.back()));
  for (std::size_t n = 0; n + 1 < starts.size(); ++n) {
    std::fill(ids.begin() + starts[n], ids.begin() + starts[n + 1], static_cast<std::int32_t>(n));
  }
  return ids;
}

Input on_device_of(const RankGroup& group, Input input) {
  if (!(input.view.device == group.device())) {
    refuse("q device", device_name(input.view.device), device_name(group.device()) + ", where the communicator is");
  }
  return input;
}

std::optional<Lengths> taken(nb::dict& options, const char* name) {
  if (!options.contains(name)) {
    return std::nullopt;
  }
  const nb::object given = options[name];
  nb::del(options[name]);
  Lengths lengths;
  if (given.is_none()) {
    return std::nullopt;
  }
  if (!nb::try_cast<Lengths>(given, lengths)) {
    refuse(name, nb::repr(given).c_str(), "a sequence of integers");
  }
  return lengths;
}

}  // namespace

SequenceLayout::Kind layout_kind(const std::string& name) {
  using Kind = SequenceLayout::Kind;
  return named("layout", name, std::vector<Kind>{Kind::zigzag, Kind::striped, Kind::contiguous}, layout_name);
}

RankCall::RankCall(const RankGroup& group, nb::handle q_, nb::handle k_, nb::handle v_, const nb::dict& options)
    : q(on_device_of(group, input_of(q_, "q"))),
      k(input_of(k_, "k", group.device())),
      v(input_of(v_, "v", group.device())) {
  nb::dict others;
  others.update(options);
  const auto documents_q = taken(others, "cu_seqlens_q");
  const auto documents_k = taken(others, "cu_seqlens_k");
  ragged = documents_q.has_value();
  const int rank = ragged ? 3 : 4;
  for (const auto& [input, name] : {std::pair(&q, "q"), std::pair(&k, "k"), std::pair(&v, "v")}) {
    if (input->view.rank != rank) {
      refuse(name, input->view.describe(),
             ragged ? "[tokens, heads, dim] with cu_seqlens_q" : "[batch, tokens, heads, dim] without cu_seqlens_q");
    }
  }
  if (k.view.shape[0] != v.view.shape[0] || (!ragged && k.view.shape[1] != v.view.shape[1])) {
    refuse("v", v.view.describe(), "as many tokens as k " + k.view.describe());
  }
  call = make_call(as_batch(q.view), as_batch(k.view), as_batch(v.view), others);
  if (ragged) {
    pack(*documents_q, documents_k);
  }
}

Problem RankCall::shapes() const {
  Problem problem = call.problem;
  if (ragged) {
    set_ragged(problem, {0, problem.seq_q}, {0, problem.seq_k});
  }
  return problem;
}

// Documents of one length for queries and keys stand on one diagonal, so that one band serves them all.
void RankCall::pack(const Lengths& documents_q, const std::optional<Lengths>& documents_k) {
  Mask& mask = call.problem.mask;
  const bool alike = !documents_k || *documents_k == documents_q;
  if (!alike && (mask.has_band() || call.problem.alibi)) {
    throw Error(
        ErrorCode::unsupported,
        "cu_seqlens_k: other lengths than cu_seqlens_q with a band or ALiBi; accepted over ranks: the same lengths");
  }
  const Lengths& keys = documents_k ? *documents_k : documents_q;
  mask = mask & Mask::segments({document_ids("cu_seqlens_q", documents_q), document_ids("cu_seqlens_k", keys)});
}

Request request_of(const RankCall& call, Pass pass, const nb::dict& ring) {
  Request request;
  request.problem = call.call.problem;
  request.pass = pass;
  request.options.layout = layout_kind(ring_option<std::string>(ring, "layout", "a name"));
  request.options.schedule = schedule_of(ring_option<std::string>(ring, "schedule", "a name"));
  request.options.links.ranks_per_node = ring_option<int>(ring, "ranks_per_node", "an integer");
  request.options.plan = call.call.plan;
  request.seed_of_rank_0 = ring.contains("seed_of_rank_0") && nb::cast<bool>(ring["seed_of_rank_0"]);
  return request;
}

}  // namespace tessera::python
