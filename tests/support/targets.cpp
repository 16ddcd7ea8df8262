#include "support/targets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "cuda/device.h"
#include "tessera/error.h"

namespace tessera::test {

namespace {

// The Impls of GPUs and the compute capabilities that they run on: from the first on, or that one alone.
struct GpuImpl {
  std::string_view name;
  int capability;
  bool later;
};
constexpr std::array kGpuImpls{GpuImpl{"sm90", 90, false}, GpuImpl{"sm80", 80, true}, GpuImpl{"decode", 80, true}};

const GpuImpl* find_gpu_impl(std::string_view name) {
  const auto* const found =
      std::find_if(kGpuImpls.begin(), kGpuImpls.end(), [&](const GpuImpl& impl) { return impl.name == name; });
  return found == kGpuImpls.end() ? nullptr : found;
}

}  // namespace

PlanOptions Target::options() const {
  PlanOptions result;
  result.impl = impl;
  result.isa = isa;
  result.threads = threads;
  result.device = device;
  result.float32_products = float32_products;
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
    if (info.available && find_gpu_impl(info.name) == nullptr) {
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

std::vector<Target> two_targets(std::uint64_t turn) {
  const std::vector<Target> all = all_targets();
  std::vector<Target> chosen = {all.front()};
  if (const std::size_t other = turn % all.size(); other > 0) {
    chosen.push_back(all[other]);
  }
  return chosen;
}

std::vector<Target> gpu_targets(const std::string& impl) {
  if (gpu_missing(impl)) {
    return {};
  }
  return {{impl, "", 1, {DeviceKind::cuda, 0}}};
}

std::optional<std::string> gpu_missing(const std::string& impl) {
  if (auto reason = internal::cuda_unavailable()) {
    return reason;
  }
  const CudaDeviceInfo& device = internal::cuda_device(0);
  const int capability = 10 * device.capability_major + device.capability_minor;
  const GpuImpl& wanted = *find_gpu_impl(impl);
  if (wanted.later ? capability < wanted.capability : capability != wanted.capability) {
    return impl + " does not run on " + device.name + ", whose compute capability is " +
           std::to_string(device.capability_major) + "." + std::to_string(device.capability_minor);
  }
  for (const ImplInfo& info : implementations()) {
    if (info.name == impl && !info.available) {
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
