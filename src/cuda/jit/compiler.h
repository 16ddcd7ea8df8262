// A compiler of kernels at run time, and what it compiles.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::internal {

// A header by the name that kernels include it with.
struct SourceFile {
  std::string_view name;
  std::string_view text;
};

// One image. Two jobs whose fields are equal give the same image.
struct CompileJob {
  std::string source;                   // of the translation unit
  std::string architecture;             // "sm_90a"
  std::span<const SourceFile> headers;  // that it may include
  std::string function = {};            // the user's, by the name in the source's #line; or empty
  // Divisions and roots may be some units of the last place off, and what is below 2^-126 may be 0.
  bool approximate = false;
};

class KernelCompiler {
 public:
  KernelCompiler() = default;
  KernelCompiler(const KernelCompiler&) = delete;
  KernelCompiler& operator=(const KernelCompiler&) = delete;
  virtual ~KernelCompiler() = default;

  // Why it cannot compile; nullopt when it can.
  virtual std::optional<std::string> unavailable() const = 0;
  // Its name, version and options: everything but the job that the image depends on.
  virtual std::string identity() const = 0;
  // How the names of its images end in the cache.
  virtual std::string_view suffix() const { return ".cubin"; }
  // The image. Throws Error with the compiler's words.
  virtual std::vector<std::byte> compile(const CompileJob& job) const = 0;
};

}  // namespace tessera::internal
