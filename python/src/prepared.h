// One pass of a call whose shapes and options are known: nothing is left to read of its tensors but addresses.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tessera/tessera.h"

namespace tessera::python {

// For tensors on a GPU in the batch layout, without tensors among the options. Tensors that the library writes are contiguous.
// Arguments are tensors of torch; a workspace is None where workspace_bytes() is 0.
class Prepared {
 public:
  // The views give shapes, strides and dtypes; their addresses are not kept. `dout` is absent for the forward pass.
  Prepared(std::shared_ptr<const Plan> plan, const ConstTensorView& q, const ConstTensorView& k,
           const ConstTensorView& v, const ConstTensorView& dout = {});

  std::vector<std::int64_t> lse_shape() const;
  std::int64_t workspace_bytes() const { return plan_->workspace_bytes(); }

  // `lse` may be None: it is then not written.
  void forward(nanobind::handle q, nanobind::handle k, nanobind::handle v, nanobind::handle out, nanobind::handle lse,
               nanobind::handle workspace, std::uintptr_t stream) const;
  void backward(nanobind::handle dout, nanobind::handle q, nanobind::handle k, nanobind::handle v, nanobind::handle out,
                nanobind::handle lse, nanobind::handle dq, nanobind::handle dk, nanobind::handle dv,
                nanobind::handle workspace, std::uintptr_t stream) const;

 private:
  template <class Tensors>
  void run(const Tensors& tensors, nanobind::handle workspace, std::uintptr_t stream) const;

  std::shared_ptr<const Plan> plan_;
  ConstTensorView q_, k_, v_, dout_;
  TensorView out_, lse_, dq_, dk_, dv_;
};

}  // namespace tessera::python
