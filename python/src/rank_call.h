// One rank's arguments of a distributed pass.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options.h"
#include "rank_group.h"
#include "tensors.h"

namespace tessera::python {

// [batch, heads, seq] of [heads, total], and the like: a batch of one sequence.
template <class Void>
BasicTensorView<Void> as_batch(BasicTensorView<Void> view) {
  if (view.absent() || view.rank >= kMaxRank) {
    return view;
  }
  std::copy_backward(view.shape.begin(), view.shape.begin() + view.rank, view.shape.begin() + view.rank + 1);
  std::copy_backward(view.strides.begin(), view.strides.begin() + view.rank, view.strides.begin() + view.rank + 1);
  view.shape[0] = 1;
  ++view.rank;
  return view;
}

// A rank's tensors and what is to be computed of them. Documents (cu_seqlens_q) are packed into a batch of one sequence.
class RankCall {
 public:
  RankCall(const RankGroup& group, nanobind::handle q_, nanobind::handle k_, nanobind::handle v_,
           const nanobind::dict& options);

  // The problem that this rank's tensors by themselves have the shapes of.
  Problem shapes() const;
  template <class Void>
  BasicTensorView<Void> view(const BasicTensorView<Void>& tensor) const {
    return ragged ? as_batch(tensor) : tensor;
  }

  Input q, k, v;
  Call call;
  bool ragged = false;

 private:
  using Lengths = std::vector<std::int64_t>;
  void pack(const Lengths& documents_q, const std::optional<Lengths>& documents_k);
};

// `ring` holds what only distributed passes have: layout, schedule, ranks_per_node and, forward, seed_of_rank_0.
Request request_of(const RankCall& call, Pass pass, const nanobind::dict& ring);

SequenceLayout::Kind layout_kind(const std::string& name);

}  // namespace tessera::python
