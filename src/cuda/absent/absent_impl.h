// An Impl that this build does not have.
#pragma once

#include <string_view>

#include "cuda/device.h"
#include "plan/impl.h"
#include "tessera/error.h"

namespace tessera::internal {

class AbsentImpl final : public Impl {
 public:
  AbsentImpl(std::string_view name, std::string_view summary) : name_(name), summary_(summary) {}

  std::string_view name() const override { return name_; }
  std::string_view summary() const override { return summary_; }
  std::optional<std::string> unavailable() const override { return cuda_unavailable(); }
  DeviceKind device() const override { return DeviceKind::cuda; }
  std::optional<std::string> refuses(const Problem& /*problem*/, Pass /*pass*/,
                                     const PlanOptions& /*options*/) const override {
    return cuda_unavailable();
  }
  std::unique_ptr<const Executable> prepare(const Problem& /*problem*/, Pass /*pass*/,
                                            const PlanOptions& /*options*/) const override {
    throw Error(ErrorCode::unsupported, *cuda_unavailable());
  }

 private:
  std::string_view name_;
  std::string_view summary_;
};

}  // namespace tessera::internal
