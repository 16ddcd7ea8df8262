#include "cli/rank_tensors.h"

#include <algorithm>
#include <cstring>

namespace tessera::cli {

namespace {

constexpr int kTokenAxis = 1;
constexpr int kLineAxis = 2;

HostTensor part_of(const HostTensor& whole, const SequenceLayout& layout, int rank, int axis) {
  const TensorView& view = whole.view();
  std::array<std::int64_t, kMaxRank> shape = view.shape;
  shape[static_cast<std::size_t>(axis)] = layout.tokens(rank);
  HostTensor part(view.dtype, std::span(shape).first(static_cast<std::size_t>(view.rank)));
  return part;
}

HostTensor sharded(const HostTensor& whole, const SequenceLayout& layout, int rank, int axis) {
  if (whole.absent()) {
    return {};
  }
  HostTensor part = part_of(whole, layout, rank, axis);
  shard(layout, rank, whole.const_view(), part.view(), axis);
  return part;
}

HostTensor like(const HostTensor& whole) {
  const TensorView& view = whole.view();
  return whole.absent() ? HostTensor()
                        : HostTensor(view.dtype, std::span(view.shape).first(static_cast<std::size_t>(view.rank)));
}

}  // namespace

RankTensors::RankTensors(const ProblemTensors& whole, SequenceLayout::Kind layout, int rank, int ranks)
    : whole_(whole),
      query_layout_(layout, whole.problem().seq_q, ranks),
      key_layout_(layout, whole.problem().seq_k, ranks),
      q_(sharded(whole.q, query_layout_, rank, kTokenAxis)),
      k_(sharded(whole.k, key_layout_, rank, kTokenAxis)),
      v_(sharded(whole.v, key_layout_, rank, kTokenAxis)),
      dout_(sharded(whole.dout, query_layout_, rank, kTokenAxis)),
      dlse_(sharded(whole.dlse, query_layout_, rank, kLineAxis)),
      out_(sharded(whole.out, query_layout_, rank, kTokenAxis)),
      lse_(sharded(whole.lse, query_layout_, rank, kLineAxis)),
      dq_(part_of(whole.dq, query_layout_, rank, kTokenAxis)),
      dk_(part_of(whole.dk, key_layout_, rank, kTokenAxis)),
      dv_(part_of(whole.dv, key_layout_, rank, kTokenAxis)),
      dbias_(like(whole.dbias)),
      dsinks_(like(whole.dsinks)) {}

ForwardTensors RankTensors::forward() const {
  return {q_.const_view(), k_.const_view(), v_.const_view(), out_.view(), lse_.view(), whole_.forward().score};
}

BackwardTensors RankTensors::backward() const {
  BackwardTensors tensors;
  tensors.q = q_.const_view();
  tensors.k = k_.const_view();
  tensors.v = v_.const_view();
  tensors.out = out_.const_view();
  tensors.lse = lse_.const_view();
  tensors.dout = dout_.const_view();
  tensors.dlse = dlse_.const_view();
  tensors.dq = dq_.view();
  tensors.dk = dk_.view();
  tensors.dv = dv_.view();
  tensors.dbias = dbias_.view();
  tensors.dsinks = dsinks_.view();
  tensors.score = whole_.forward().score;
  return tensors;
}

void RankTensors::add_to(DeviceTensors& copies) const {
  for (const HostTensor* tensor : {&q_, &k_, &v_, &dout_, &dlse_, &out_, &lse_, &dq_, &dk_, &dv_, &dbias_, &dsinks_,
                                   &whole_.bias, &whole_.alibi_slopes, &whole_.sinks}) {
    copies.add(*tensor);
  }
}

void RankTensors::download(const DeviceTensors& copies, Pass pass) const {
  for (const Output& output : outputs(pass, whole_)) {
    copies.download(*output.part);
  }
}

std::vector<RankTensors::Output> RankTensors::outputs(Pass pass, const ProblemTensors& whole) const {
  std::vector<Output> all;
  if (pass == Pass::forward) {
    all = {{"O", &out_, &whole.out, &query_layout_, kTokenAxis}, {"LSE", &lse_, &whole.lse, &query_layout_, kLineAxis}};
  } else {
    all = {{"dQ", &dq_, &whole.dq, &query_layout_, kTokenAxis},
           {"dK", &dk_, &whole.dk, &key_layout_, kTokenAxis},
           {"dV", &dv_, &whole.dv, &key_layout_, kTokenAxis},
           {"dbias", &dbias_, &whole.dbias, nullptr, 0},
           {"dsinks", &dsinks_, &whole.dsinks, nullptr, 0}};
  }
  std::erase_if(all, [](const Output& output) { return output.part->absent(); });
  return all;
}

void RankTensors::collect(Communicator& communicator, Pass pass, const ProblemTensors* whole) const {
  for (const Output& output : outputs(pass, whole == nullptr ? whole_ : *whole)) {
    // Ranks may differ by a token; messages may not.
    std::vector<double> mine = output.part->values();
    std::size_t longest = mine.size();
    if (output.layout != nullptr && output.layout->length() > 0) {
      const auto total = static_cast<std::size_t>(output.whole->view().elements() / output.layout->length());
      longest = total * static_cast<std::size_t>(output.layout->longest_tokens());
    }
    mine.resize(longest);
    const auto all = communicator.gather(std::as_bytes(std::span(mine)));
    if (whole == nullptr) {
      continue;
    }
    std::vector<double> sum(longest, 0.0);
    for (int rank = 0; rank < communicator.size(); ++rank) {
      std::vector<double> values(longest);
      if (longest > 0) {
        std::memcpy(values.data(), all[static_cast<std::size_t>(rank)].data(), longest * sizeof(double));
      }
      auto next = values.begin();
      if (output.layout != nullptr) {
        HostTensor part = part_of(*output.whole, *output.layout, rank, output.axis);
        part.fill([&] { return *next++; });
        unshard(*output.layout, rank, part.const_view(), output.whole->view(), output.axis);
      } else {
        std::transform(sum.begin(), sum.end(), values.begin(), sum.begin(), std::plus<>());
      }
    }
    if (output.layout == nullptr) {
      auto next = sum.begin();
      const_cast<HostTensor*>(output.whole)->fill([&] { return *next++; });
    }
  }
}

DistributedFacts run_on_rank(const ProblemTensors& whole, Pass pass, Communicator& communicator,
                             const DistributedOptions& options, bool write) {
  DistributedPlan plan = DistributedPlan::make(whole.problem(), pass, communicator, options);
  const RankTensors part(whole, options.layout, communicator.rank(), communicator.size());
  const Device device = communicator.device();
  if (device.kind == DeviceKind::cpu) {
    pass == Pass::forward ? plan.run(part.forward()) : plan.run(part.backward());
  } else {
    DeviceTensors copies(device.index);
    part.add_to(copies);
    const internal::DeviceStream stream(device.index);
    pass == Pass::forward ? plan.run(copies.moved(part.forward()), stream.handle())
                          : plan.run(copies.moved(part.backward()), stream.handle());
    part.download(copies, pass);
  }
  part.collect(communicator, pass, write ? &whole : nullptr);
  return plan.facts();
}

std::vector<DistributedFacts> run_on_local_ranks(const ProblemTensors& whole, Pass pass, int ranks,
                                                 const DistributedOptions& options) {
  return run_on_local_ranks(whole, pass, std::vector<Device>(static_cast<std::size_t>(ranks)), options);
}

std::vector<DistributedFacts> run_on_local_ranks(const ProblemTensors& whole, Pass pass,
                                                 const std::vector<Device>& devices,
                                                 const DistributedOptions& options) {
  std::vector<DistributedFacts> facts(devices.size());
  run_local_ranks(devices, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    DistributedOptions own = options;
    own.plan.device = communicator.device();
    facts[static_cast<std::size_t>(rank)] = run_on_rank(whole, pass, communicator, own, rank == 0);
  });
  return facts;
}

}  // namespace tessera::cli
