#include "cuda/device.h"

#include "core/fail.h"
#include "cuda/driver.h"

namespace tessera::internal {

namespace {

CudaDeviceInfo describe_device(int index) {
  const Driver& d = driver();
  CUdevice device = 0;
  check(d.device_get(&device, index), "cuDeviceGet");
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    check(d.device_attribute(&value, which, device), "cuDeviceGetAttribute");
    return value;
  };
  CudaDeviceInfo info;
  info.index = index;
  char name[256] = {};
  check(d.device_name(name, sizeof name, device), "cuDeviceGetName");
  info.name = name;
  info.capability_major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  info.capability_minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  info.multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  info.l2_bytes = attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  info.shared_bytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  std::size_t memory = 0;
  check(d.device_total_memory(&memory, device), "cuDeviceTotalMem");
  info.memory_bytes = static_cast<std::int64_t>(memory);
  return info;
}

CudaInfo describe_all() {
  CudaInfo info;
  if (const auto reason = driver_missing()) {
    info.unavailable = *reason;
    return info;
  }
  int version = 0;
  check(driver().driver_version(&version), "cuDriverGetVersion");
  info.driver = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  int count = 0;
  check(driver().device_count(&count), "cuDeviceGetCount");
  for (int index = 0; index < count; ++index) {
    info.devices.push_back(describe_device(index));
  }
  if (count == 0) {
    info.unavailable = "the NVIDIA driver finds no device";
  }
  return info;
}

const CudaInfo& all_devices() {
  static const CudaInfo info = describe_all();
  return info;
}

}  // namespace

std::optional<std::string> cuda_unavailable() {
  const CudaInfo& info = all_devices();
  return info.unavailable.empty() ? std::nullopt : std::optional(info.unavailable);
}

const CudaDeviceInfo& cuda_device(int index) {
  const CudaInfo& info = all_devices();
  if (!info.unavailable.empty()) {
    throw Error(ErrorCode::unsupported, info.unavailable);
  }
  if (index < 0 || index >= static_cast<int>(info.devices.size())) {
    fail_argument("device", "cuda:" + std::to_string(index),
                  "cuda:0 to cuda:" + std::to_string(info.devices.size() - 1));
  }
  return info.devices[static_cast<std::size_t>(index)];
}

}  // namespace tessera::internal

namespace tessera {

CudaInfo cuda_info() { return internal::all_devices(); }

}  // namespace tessera
