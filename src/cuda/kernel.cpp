#include "cuda/kernel.h"

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/embedded.h"
#include "cuda/jit/cache.h"
#include "cuda/nvrtc.h"
#include "function/source.h"
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

// Kernels for 9.0 use instructions that only this architecture has.
std::string architecture_of(int device) {
  const CudaDeviceInfo& info = cuda_device(device);
  const std::string number = std::to_string(info.capability_major) + std::to_string(info.capability_minor);
  return "sm_" + number + (number == "90" ? "a" : "");
}

// By the names with which translation units include them.
std::span<const SourceFile> headers() {
  static const std::vector<SourceFile> files = [] {
    std::vector<SourceFile> all(embedded_sources().begin(), embedded_sources().end());
    all.push_back({"tessera/function_support.h", function_support_text()});
    return all;
  }();
  return files;
}

CUmodule load_module(int device, const KernelImage& image) {
  CUmodule module = nullptr;
  if (const EmbeddedImage* const found = find_image(image.name)) {
    check(driver().module_load(&module, found->bytes.data()), "cuModuleLoadData");
    return module;
  }
  if (const auto reason = Kernel::missing(image)) {
    throw Error(ErrorCode::internal, "no kernel image " + image.name + " in this build: " + *reason);
  }
  const CompileJob job{image.source, architecture_of(device), headers(), image.function, image.approximate};
  const std::vector<std::byte> compiled = find_or_compile(nvrtc(), job, default_cache_folder());
  check(driver().module_load(&module, compiled.data()), "cuModuleLoadData");
  return module;
}

// Once for the life of the program. Different modules are compiled at the same time.
CUmodule module_of(int device, const KernelImage& image) {
  struct Module {
    std::mutex mutex;
    CUmodule handle = nullptr;
  };
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, Module> modules;
  Module* module = nullptr;
  {
    const std::lock_guard lock(mutex);
    module = &modules[{device, image.name}];
  }
  const std::lock_guard lock(module->mutex);
  if (module->handle == nullptr) {
    module->handle = load_module(device, image);
  }
  return module->handle;
}

}  // namespace

std::optional<std::string> Kernel::missing(const KernelImage& image) {
  if (exists(image.name)) {
    return std::nullopt;
  }
  return image.source.empty() ? std::optional<std::string>("it has no source") : nvrtc().unavailable();
}

bool Kernel::exists(std::string_view image) { return find_image(image) != nullptr; }

const Kernel& Kernel::load(int device, std::string_view image, std::string_view function) {
  return load(device, KernelImage{std::string(image), {}, {}, false}, function);
}
const Kernel& Kernel::load(int device, const KernelImage& image) { return load(device, image, {}); }

void Kernel::load_all(int device, std::span<const KernelImage> images) {
  std::vector<std::future<void>> loads;
  for (const KernelImage& image : images) {
    const auto policy = exists(image.name) ? std::launch::deferred : std::launch::async;
    loads.push_back(std::async(policy, [device, &image] { load(device, image); }));
  }
  for (std::future<void>& one : loads) {
    one.wait();
  }
  for (std::future<void>& one : loads) {
    one.get();
  }
}

const Kernel& Kernel::load(int device, const KernelImage& image, std::string_view function) {
  static std::mutex mutex;
  static std::map<std::tuple<int, std::string, std::string>, Kernel> kernels;
  const std::string entry(function.empty() ? image.name : function);
  const ContextScope context(device);
  const CUmodule module = module_of(device, image);
  const std::lock_guard lock(mutex);
  Kernel& kernel = kernels[{device, image.name, entry}];
  if (kernel.function_ != nullptr) {
    return kernel;
  }
  const Driver& d = driver();
  CUfunction handle = nullptr;
  check(d.module_function(&handle, module, entry.c_str()), "cuModuleGetFunction");
  check(d.function_attribute(&kernel.registers_, CU_FUNC_ATTRIBUTE_NUM_REGS, handle), "cuFuncGetAttribute");
  check(d.function_attribute(&kernel.spill_bytes_, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle), "cuFuncGetAttribute");
  check(d.function_attribute(&kernel.ptx_version_, CU_FUNC_ATTRIBUTE_PTX_VERSION, handle), "cuFuncGetAttribute");
  CUdevice device_handle = 0;
  int most_shared = 0;
  int static_shared = 0;
  check(d.device_get(&device_handle, device), "cuDeviceGet");
  check(d.device_attribute(&most_shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device_handle),
        "cuDeviceGetAttribute");
  check(d.function_attribute(&static_shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle), "cuFuncGetAttribute");
  check(d.function_set_attribute(handle, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most_shared - static_shared),
        "cuFuncSetAttribute");
  kernel.compiled_ = !exists(image.name);
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
  // In code for 8.0, which later GPUs may run, nothing waits.
  const bool early = shape.early && ptx_version_ >= 90;
  CUlaunchAttribute attribute{};
  if (shape.cooperative) {
    attribute.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    attribute.value.cooperative = 1;
  } else if (early) {
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative || early ? 1 : 0;
  check(driver().launch(&config, function_, arguments, nullptr), "cuLaunchKernelEx");
}

}  // namespace tessera::internal
