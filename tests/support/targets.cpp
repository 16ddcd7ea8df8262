#include "support/targets.h"

#include <gtest/gtest.h>

#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::test {

namespace {

constexpr const char* kGpuImpl = "sm90";

}  // namespace

PlanOptions Target::options() const {
  PlanOptions result;
  result.impl = impl;
  result.isa = isa;
  result.threads = threads;
  result.device = device;
  return result;
}

std::string Target::name() const {
  if (device.kind == DeviceKind::cuda) {
    return impl + " on cuda:" + std::to_string(device.index);
  }
  return isa.empty() ? impl : impl + "/" + isa;
}

std::vector<std::string> cpu_impls() {
  std::vector<std::string> names;
  for (const ImplInfo& info : implementations()) {
    if (info.available && info.name != kGpuImpl) {
      names.push_back(info.name);
    }
  }
  return names;
}

std::vector<Target> flash_targets() {
  std::vector<Target> targets;
  for (const std::string& isa : cpu_info().isas) {
    targets.push_back({"flash", isa});
  }
  return targets;
}

std::vector<Target> all_targets() {
  std::vector<Target> targets = flash_targets();
  for (const std::string& name : cpu_impls()) {
    if (name != "flash") {
      targets.push_back({name, ""});
    }
  }
  return targets;
}

std::vector<Target> gpu_targets() {
  if (gpu_missing()) {
    return {};
  }
  return {{kGpuImpl, "", 1, {DeviceKind::cuda, 0}}};
}

std::optional<std::string> gpu_missing() {
  if (auto reason = internal::cuda_unavailable()) {
    return reason;
  }
  const CudaDeviceInfo& device = internal::cuda_device(0);
  if (device.capability_major != 9 || device.capability_minor != 0) {
    return device.name + " is not of compute capability 9.0";
  }
  for (const ImplInfo& info : implementations()) {
    if (info.name == kGpuImpl && !info.available) {
      return info.reason;
    }
  }
  return std::nullopt;
}

Plan make_plan(const Problem& problem, Pass pass, const Target& target) {
  Plan plan = Plan::make(problem, pass, target.options());
  EXPECT_EQ(plan.facts().impl, target.impl);
  if (!target.isa.empty()) {
    EXPECT_EQ(plan.facts().isa, target.isa);
  }
  return plan;
}

bool accepts(const Problem& problem, Pass pass, const Target& target) {
  try {
    Plan::make(problem, pass, target.options());
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) {
      throw;
    }
    return false;
  }
}

}  // namespace tessera::test
