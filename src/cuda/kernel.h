// A compiled kernel on one device.
#pragma once

#include <cuda.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tessera/plan.h"

namespace tessera::internal {

struct LaunchShape {
  std::int64_t blocks = 1;
  int threads = 1;
  int shared_bytes = 0;
  bool cooperative = false;  // starts when all blocks can run at once
  // Where it can, starts when the kernel in front lets it, and itself waits for that one (ptx/grid.cuh).
  bool early = false;
};

// A kernel by its name and the translation unit that defines it, which is compiled where the build has no such image.
struct KernelImage {
  std::string name;
  std::string source;
  std::string function;      // the name of the user's function in it, or empty
  bool approximate = false;  // see CompileJob
};

class Kernel {
 public:
  // Loads the embedded image on the device, once for the life of the program.
  // `function` is its entry; empty: that of the image's own name. Throws Error(internal) when there is no such image.
  static const Kernel& load(int device, std::string_view image, std::string_view function = {});
  // The same, compiling it or taking it from the cache where it is not embedded. Throws Error(internal) with the compiler's
  // words, and when there is no compiler.
  static const Kernel& load(int device, const KernelImage& image);
  // Loads several at the same time, so that those to compile are compiled beside each other.
  static void load_all(int device, std::span<const KernelImage> images);
  // Why there is neither an embedded image nor a compiler; nullopt when there is one.
  static std::optional<std::string> missing(const KernelImage& image);
  // Whether the build compiled this image.
  static bool exists(std::string_view image);

  // `params` is the kernel's one parameter; it is copied before this returns.
  template <class Params>
  void launch(const LaunchShape& shape, const Params& params, void* stream) const {
    void* arguments[] = {const_cast<Params*>(&params)};
    launch_raw(shape, arguments, stream);
  }

  int registers() const { return registers_; }
  int spill_bytes() const { return spill_bytes_; }
  // Whether it is not of the build.
  bool compiled() const { return compiled_; }

 private:
  static const Kernel& load(int device, const KernelImage& image, std::string_view function);
  void launch_raw(const LaunchShape& shape, void** arguments, void* stream) const;

  CUfunction function_ = nullptr;
  int registers_ = 0;
  int spill_bytes_ = 0;
  int ptx_version_ = 0;
  bool compiled_ = false;
};

}  // namespace tessera::internal
