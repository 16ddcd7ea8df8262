// Images that were compiled at run time, kept in a folder of files.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/sha256.h"
#include "cuda/jit/compiler.h"

namespace tessera::internal {

// Processes may share the folder: entries are written under a name of their own and renamed, so that a reader finds a whole
// one or none. An entry names its key and has a checksum; one that is truncated, altered or about something else is no entry.
class KernelCache {
 public:
  explicit KernelCache(std::filesystem::path folder, std::string_view suffix = ".cubin")
      : folder_(std::move(folder)), suffix_(suffix) {}

  std::optional<std::vector<std::byte>> load(const Digest& key) const;
  // Whether it was written; a folder that cannot be written to is not an error, since the image is there.
  bool store(const Digest& key, std::span<const std::byte> image) const;
  std::filesystem::path path_of(const Digest& key) const;

 private:
  std::filesystem::path folder_;
  std::string suffix_;
};

// The folder: TESSERA_CACHE_DIR, else tessera in XDG_CACHE_HOME, else in .cache of HOME; nullopt when none of them is set.
std::optional<std::filesystem::path> default_cache_folder();

// Of everything that the image depends on.
Digest cache_key(const KernelCompiler& compiler, const CompileJob& job);

// The image from the cache or, where it has none, from the compiler, which is then cached. `folder` may be absent.
std::vector<std::byte> find_or_compile(const KernelCompiler& compiler, const CompileJob& job,
                                       const std::optional<std::filesystem::path>& folder);

}  // namespace tessera::internal
