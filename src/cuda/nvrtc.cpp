#include "cuda/nvrtc.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "cuda/jit/unavailable.h"
#include "tessera/error.h"

namespace tessera::internal {

namespace {

// Of nvrtc.h, which need not be there when the library is built.
using Program = struct NvrtcProgram*;
constexpr int kSuccess = 0;
struct Functions {
  int (*version)(int*, int*);
  const char* (*error_string)(int);
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(Program*);
  int (*compile)(Program, int, const char* const*);
  int (*log_size)(Program, std::size_t*);
  int (*log)(Program, char*);
  int (*image_size)(Program, std::size_t*);
  int (*image)(Program, char*);
};

constexpr std::array kVersions{"13", "12"};
constexpr int kOldestMajor = 12;
constexpr int kOldestMinor = 4;  // as for nvcc

// Kernels include one header of the standard library and use one function of the host compiler, which this compiler lacks.
constexpr SourceFile kStandardHeader{"cstdint", R"(#pragma once
#define __builtin_huge_valf() __builtin_bit_cast(float, 0x7F800000)
namespace std {
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using uintptr_t = unsigned long;
}  // namespace std
)"};

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> found;
  std::error_code error;
  for (std::filesystem::directory_iterator i(folder, error), end; !error && i != end; i.increment(error)) {
    found.push_back(i->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// The site-packages folders that libraries of this process were loaded from, and those of the active environment.
std::vector<std::filesystem::path> package_folders() {
  std::vector<std::filesystem::path> folders;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t /*size*/, void* target) {
        constexpr std::string_view kFolder = "/site-packages/";
        const std::string_view path = info->dlpi_name;
        if (const std::size_t at = path.rfind(kFolder); at != std::string_view::npos) {
          static_cast<std::vector<std::filesystem::path>*>(target)->emplace_back(
              path.substr(0, at + kFolder.size() - 1));
        }
        return 0;
      },
      &folders);
  if (const char* environment = std::getenv("VIRTUAL_ENV")) {
    for (const auto& python : entries_of(std::filesystem::path(environment) / "lib")) {
      folders.push_back(python / "site-packages");
    }
  }
  std::sort(folders.begin(), folders.end());
  folders.erase(std::unique(folders.begin(), folders.end()), folders.end());
  return folders;
}

std::vector<std::filesystem::path> library_folders() {
  std::vector<std::filesystem::path> folders;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* home = std::getenv(variable)) {
      folders.push_back(std::filesystem::path(home) / "lib64");
      folders.push_back(std::filesystem::path(home) / "lib");
    }
  }
  for (const auto& packages : package_folders()) {
    for (const auto& package : entries_of(packages / "nvidia")) {
      folders.push_back(package / "lib");
    }
  }
  return folders;
}

// The library of a folder, with its built-in functions loaded before it: it looks for them by name alone.
void* open_in(const std::filesystem::path& folder, const std::string& name) {
  std::error_code error;
  if (!std::filesystem::exists(folder / name, error)) {
    return nullptr;
  }
  for (const auto& path : entries_of(folder)) {
    if (path.filename().string().starts_with("libnvrtc-builtins.so")) {
      ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    }
  }
  return ::dlopen((folder / name).c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* open_library() {
  for (const std::string version : kVersions) {
    if (void* const found = ::dlopen(("libnvrtc.so." + version).c_str(), RTLD_NOW | RTLD_LOCAL)) {
      return found;
    }
  }
  const auto folders = library_folders();
  for (const std::string version : kVersions) {
    for (const auto& folder : folders) {
      if (void* const found = open_in(folder, "libnvrtc.so." + version)) {
        return found;
      }
    }
  }
  return nullptr;
}

template <class Function>
bool find_function(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

class Nvrtc final : public KernelCompiler {
 public:
  Nvrtc() {
    void* const library = open_library();
    if (library == nullptr) {
      missing_ = "NVRTC (libnvrtc.so.13 or .12) was not found";
      return;
    }
    if (!find_function(library, "nvrtcVersion", call_.version) ||
        !find_function(library, "nvrtcGetErrorString", call_.error_string) ||
        !find_function(library, "nvrtcCreateProgram", call_.create) ||
        !find_function(library, "nvrtcDestroyProgram", call_.destroy) ||
        !find_function(library, "nvrtcCompileProgram", call_.compile) ||
        !find_function(library, "nvrtcGetProgramLogSize", call_.log_size) ||
        !find_function(library, "nvrtcGetProgramLog", call_.log) ||
        !find_function(library, "nvrtcGetCUBINSize", call_.image_size) ||
        !find_function(library, "nvrtcGetCUBIN", call_.image) || call_.version(&major_, &minor_) != kSuccess) {
      missing_ = "the NVRTC that was found lacks functions";
    } else if (major_ < kOldestMajor || (major_ == kOldestMajor && minor_ < kOldestMinor)) {
      missing_ = "NVRTC is " + version() + "; 12.4 or newer is needed";
    }
  }

  std::optional<std::string> unavailable() const override {
    return missing_.empty() ? std::nullopt : std::optional(missing_);
  }

  std::string identity() const override {
    std::string text = "nvrtc " + version();
    for (const char* option : kOptions) {
      text.append(" ").append(option);
    }
    for (const char* option : kApproximateOptions) {
      text.append(" (").append(option).append(")");
    }
    return text.append("\n").append(kStandardHeader.text);
  }

  std::vector<std::byte> compile(const CompileJob& job) const override {
    std::vector<const char*> names{kStandardHeader.name.data()};
    std::vector<const char*> texts{kStandardHeader.text.data()};
    for (const SourceFile& header : job.headers) {
      names.push_back(header.name.data());
      texts.push_back(header.text.data());
    }
    Program program = nullptr;
    check(call_.create(&program, job.source.c_str(), "kernel.cu", static_cast<int>(names.size()), texts.data(),
                       names.data()),
          "nvrtcCreateProgram");
    const std::string architecture = "-arch=" + job.architecture;
    std::vector<const char*> options(kOptions.begin(), kOptions.end());
    options.push_back(architecture.c_str());
    if (job.approximate) {
      options.insert(options.end(), kApproximateOptions.begin(), kApproximateOptions.end());
    }
    const int result = call_.compile(program, static_cast<int>(options.size()), options.data());
    std::size_t size = 0;
    std::vector<std::byte> image;
    std::string log;
    if (result == kSuccess && call_.image_size(program, &size) == kSuccess) {
      image.resize(size);
      call_.image(program, reinterpret_cast<char*>(image.data()));
    } else if (call_.log_size(program, &size) == kSuccess) {
      log.resize(size);
      call_.log(program, log.data());
    }
    call_.destroy(&program);
    if (image.empty()) {
      fail(job, log.c_str());
    }
    return image;
  }

 private:
  static constexpr std::array kOptions{"-std=c++20", "-default-device"};
  static constexpr std::array kApproximateOptions{"-prec-div=false", "-prec-sqrt=false", "-ftz=true"};

  // What the compiler says of the user's text has its name and line numbers.
  [[noreturn]] void fail(const CompileJob& job, std::string_view log) const {
    const bool of_user = !job.function.empty() && log.find(job.function + "(") != std::string_view::npos;
    throw Error(of_user ? ErrorCode::invalid_argument : ErrorCode::internal,
                (of_user ? "score_function: '" + job.function + "' does not compile with NVRTC " + version()
                         : "NVRTC " + version() + " does not compile a kernel") +
                    ":\n" + std::string(log));
  }

  std::string version() const { return std::to_string(major_) + "." + std::to_string(minor_); }
  void check(int result, const char* call) const {
    if (result != kSuccess) {
      throw Error(ErrorCode::internal, std::string(call) + ": " + call_.error_string(result));
    }
  }

  Functions call_{};
  int major_ = 0;
  int minor_ = 0;
  std::string missing_;
};

}  // namespace

const KernelCompiler& nvrtc() {
  return unless_switched_off([]() -> const KernelCompiler& {
    static const Nvrtc compiler;
    return compiler;
  });
}

}  // namespace tessera::internal
