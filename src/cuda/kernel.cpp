#include "cuda/kernel.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "cuda/driver.h"
#include "cuda/embedded.h"
#include "tessera/error.h"

namespace tessera::internal {

namespace {

const EmbeddedImage* find_image(std::string_view name) {
  const auto images = embedded_images();
  const auto found =
      std::lower_bound(images.begin(), images.end(), name,
                       [](const EmbeddedImage& image, std::string_view key) { return image.name < key; });
  return found == images.end() || found->name != name ? nullptr : &*found;
}

}  // namespace

bool Kernel::exists(std::string_view image) { return find_image(image) != nullptr; }

const Kernel& Kernel::load(int device, std::string_view image, std::string_view function) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, CUmodule> modules;
  static std::map<std::tuple<int, std::string, std::string>, Kernel> kernels;
  const std::lock_guard lock(mutex);
  const std::string entry(function.empty() ? image : function);
  const auto [place, fresh] = kernels.try_emplace({device, std::string(image), entry});
  Kernel& kernel = place->second;
  if (kernel.function_ != nullptr) {
    return kernel;
  }
  const EmbeddedImage* found = find_image(image);
  if (found == nullptr) {
    throw Error(ErrorCode::internal, "no kernel image " + std::string(image) + " in this build");
  }
  const Driver& d = driver();
  const ContextScope context(device);
  CUmodule& module = modules[{device, std::string(image)}];
  if (module == nullptr) {
    check(d.module_load(&module, found->bytes.data()), "cuModuleLoadData");
  }
  CUfunction handle = nullptr;
  check(d.module_function(&handle, module, entry.c_str()), "cuModuleGetFunction");
  check(d.function_attribute(&kernel.registers_, CU_FUNC_ATTRIBUTE_NUM_REGS, handle), "cuFuncGetAttribute");
  check(d.function_attribute(&kernel.spill_bytes_, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle), "cuFuncGetAttribute");
  CUdevice device_handle = 0;
  int most_shared = 0;
  int static_shared = 0;
  check(d.device_get(&device_handle, device), "cuDeviceGet");
  check(d.device_attribute(&most_shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device_handle),
        "cuDeviceGetAttribute");
  check(d.function_attribute(&static_shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle), "cuFuncGetAttribute");
  check(d.function_set_attribute(handle, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most_shared - static_shared),
        "cuFuncSetAttribute");
  kernel.function_ = handle;
  return kernel;
}

void Kernel::launch_raw(const LaunchShape& shape, void** arguments, void* stream) const {
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(shape.blocks);
  config.gridDimY = 1;
  config.gridDimZ = 1;
  config.blockDimX = static_cast<unsigned>(shape.threads);
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(shape.shared_bytes);
  config.hStream = static_cast<CUstream>(stream);
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
  attribute.value.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative ? 1 : 0;
  check(driver().launch(&config, function_, arguments, nullptr), "cuLaunchKernelEx");
}

}  // namespace tessera::internal
