#include "prepared.h"

#include <cstddef>
#include <span>
#include <utility>

#include "tensors.h"

namespace nb = nanobind;

namespace tessera::python {

namespace {

TensorView contiguous_like(const ConstTensorView& view, std::int64_t dim, DType dtype) {
  return {nullptr, dtype, {view.shape[0], view.shape[1], view.shape[2], dim}, view.device};
}

template <class View>
View at(View view, nb::handle tensor) {
  view.data = torch_address(tensor);
  return view;
}

}  // namespace

Prepared::Prepared(std::shared_ptr<const Plan> plan, const ConstTensorView& q, const ConstTensorView& k,
                   const ConstTensorView& v, const ConstTensorView& dout)
    : plan_(std::move(plan)), q_(q), k_(k), v_(v), dout_(dout) {
  const Problem& problem = plan_->problem();
  const DType dtype = problem.out_dtype();
  out_ = contiguous_like(q, problem.dim_v, dtype);
  lse_ = {nullptr, DType::float32, {problem.batch, problem.heads_q, problem.seq_q}, q.device};
  dq_ = contiguous_like(q, problem.dim_qk, dtype);
  dk_ = contiguous_like(k, problem.dim_qk, dtype);
  dv_ = contiguous_like(v, problem.dim_v, dtype);
}

std::vector<std::int64_t> Prepared::lse_shape() const { return {lse_.shape.begin(), lse_.shape.begin() + lse_.rank}; }

template <class Tensors>
void Prepared::run(const Tensors& tensors, nb::handle workspace, std::uintptr_t stream) const {
  std::span<std::byte> memory;
  if (!workspace.is_none()) {
    memory = {static_cast<std::byte*>(torch_address(workspace)), static_cast<std::size_t>(plan_->workspace_bytes())};
  }
  const nb::gil_scoped_release release;
  plan_->run(tensors, memory, reinterpret_cast<void*>(stream));
}

void Prepared::forward(nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse, nb::handle workspace,
                       std::uintptr_t stream) const {
  ForwardTensors tensors;
  tensors.q = at(q_, q);
  tensors.k = at(k_, k);
  tensors.v = at(v_, v);
  tensors.out = at(out_, out);
  if (!lse.is_none()) {
    tensors.lse = at(lse_, lse);
  }
  run(tensors, workspace, stream);
}

void Prepared::backward(nb::handle dout, nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
                        nb::handle dq, nb::handle dk, nb::handle dv, nb::handle workspace,
                        std::uintptr_t stream) const {
  BackwardTensors tensors;
  tensors.q = at(q_, q);
  tensors.k = at(k_, k);
  tensors.v = at(v_, v);
  tensors.out = at(out_, out);
  tensors.lse = at(lse_, lse);
  tensors.dout = at(dout_, dout);
  tensors.dq = at(dq_, dq);
  tensors.dk = at(dk_, dk);
  tensors.dv = at(dv_, dv);
  run(tensors, workspace, stream);
}

}  // namespace tessera::python
