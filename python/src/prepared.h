// One pass of a call whose shapes and options are known: nothing is left to read from Python but addresses.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tessera/tessera.h"

namespace tessera::python {

// For tensors on a GPU in the batch layout, without tensors among the options. Tensors that the library writes are contiguous.
// Addresses are those of device memory, and that of the workspace is 0 where workspace_bytes() is.
class Prepared {
 public:
  // The views give shapes, strides and dtypes; their addresses are not kept. `dout` is absent for the forward pass.
  Prepared(std::shared_ptr<const Plan> plan, const ConstTensorView& q, const ConstTensorView& k,
           const ConstTensorView& v, const ConstTensorView& dout = {});

  std::vector<std::int64_t> lse_shape() const;
  std::int64_t workspace_bytes() const { return plan_->workspace_bytes(); }

  // `lse` may be 0: it is then not written.
  void forward(std::uintptr_t q, std::uintptr_t k, std::uintptr_t v, std::uintptr_t out, std::uintptr_t lse,
               std::uintptr_t workspace, std::uintptr_t stream) const;
  void backward(std::uintptr_t dout, std::uintptr_t q, std::uintptr_t k, std::uintptr_t v, std::uintptr_t out,
                std::uintptr_t lse, std::uintptr_t dq, std::uintptr_t dk, std::uintptr_t dv, std::uintptr_t workspace,
                std::uintptr_t stream) const;

 private:
  template <class Tensors>
  void run(const Tensors& tensors, std::uintptr_t workspace, std::uintptr_t stream) const;

  std::shared_ptr<const Plan> plan_;
  ConstTensorView q_, k_, v_, dout_;
  TensorView out_, lse_, dq_, dk_, dv_;
};

}  // namespace tessera::python
