#include "cuda/sm90_impl.h"

#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::internal {

namespace {

class AbsentImpl final : public Impl {
 public:
  std::string_view name() const override { return "sm90"; }
  std::string_view summary() const override {
    return "NVIDIA Hopper (compute capability 9.0): warpgroup matrix products and bulk tensor copies";
  }
  std::optional<std::string> unavailable() const override { return cuda_unavailable(); }
  std::optional<std::string> refuses(const Problem& /*problem*/, Pass /*pass*/,
                                     const PlanOptions& /*options*/) const override {
    return cuda_unavailable();
  }
  std::unique_ptr<const Executable> prepare(const Problem& /*problem*/, Pass /*pass*/,
                                            const PlanOptions& /*options*/) const override {
    throw Error(ErrorCode::unsupported, *cuda_unavailable());
  }
};

}  // namespace

const Impl& sm90_impl() {
  static const AbsentImpl impl;
  return impl;
}

}  // namespace tessera::internal
