#include "cuda/jit/cache.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>

namespace tessera::internal {

namespace {

// Before the image. Another format gets another magic.
struct EntryHeader {
  std::array<char, 8> magic{'T', 'S', 'R', 'K', 'R', 'N', '0', '1'};
  Digest key{};
  std::uint64_t bytes = 0;
  Digest checksum{};
};
static_assert(sizeof(EntryHeader) == 80);

EntryHeader header_of(const Digest& key, std::span<const std::byte> image) {
  EntryHeader header;
  header.key = key;
  header.bytes = image.size();
  header.checksum = sha256(image);
  return header;
}

// Of an entry that is being written: no other process or thread has it.
std::string unique_suffix() {
  static std::atomic<unsigned> count{0};
  return "." + std::to_string(::getpid()) + "." + std::to_string(count++) + ".tmp";
}

std::optional<std::filesystem::path> folder_from(const char* variable, const char* below) {
  const char* const value = std::getenv(variable);
  if (value == nullptr || *value == '\0') {
    return std::nullopt;
  }
  return *below == '\0' ? std::filesystem::path(value) : std::filesystem::path(value) / below;
}

}  // namespace

std::filesystem::path KernelCache::path_of(const Digest& key) const { return folder_ / (hex(key) + suffix_); }

std::optional<std::vector<std::byte>> KernelCache::load(const Digest& key) const {
  std::ifstream file(path_of(key), std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  constexpr std::streamoff kMostBytes = std::streamoff{1} << 28;  // images have less than a megabyte
  if (size < static_cast<std::streamoff>(sizeof(EntryHeader)) || size > kMostBytes) {
    return std::nullopt;
  }
  file.seekg(0);
  EntryHeader header;
  std::vector<std::byte> image(static_cast<std::size_t>(size) - sizeof header);
  file.read(reinterpret_cast<char*>(&header), sizeof header);
  file.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
  const EntryHeader expected = header_of(key, image);
  if (!file || std::memcmp(&header, &expected, sizeof header) != 0) {
    return std::nullopt;
  }
  return image;
}

bool KernelCache::store(const Digest& key, std::span<const std::byte> image) const {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  const std::filesystem::path target = path_of(key);
  const std::filesystem::path temporary = target.string() + unique_suffix();
  {
    std::ofstream file(temporary, std::ios::binary);
    const EntryHeader header = header_of(key, image);
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
    file.write(reinterpret_cast<const char*>(image.data()), static_cast<std::streamsize>(image.size()));
    file.close();
    if (!file) {
      std::filesystem::remove(temporary, error);
      return false;
    }
  }
  std::filesystem::rename(temporary, target, error);
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
  }
  return !error;
}

std::optional<std::filesystem::path> default_cache_folder() {
  if (auto folder = folder_from("TESSERA_CACHE_DIR", "")) {
    return folder;
  }
  if (auto folder = folder_from("XDG_CACHE_HOME", "tessera"); folder && folder->is_absolute()) {
    return folder;
  }
  return folder_from("HOME", ".cache/tessera");
}

Digest cache_key(const KernelCompiler& compiler, const CompileJob& job) {
  Sha256 digest;
  digest.add(compiler.identity()).add(job.architecture).add(job.source).add(job.approximate ? "approximate" : "exact");
  for (const SourceFile& header : job.headers) {
    digest.add(header.name).add(header.text);
  }
  return digest.finish();
}

std::vector<std::byte> find_or_compile(const KernelCompiler& compiler, const CompileJob& job,
                                       const std::optional<std::filesystem::path>& folder) {
  if (!folder) {
    return compiler.compile(job);
  }
  const KernelCache cache(*folder, compiler.suffix());
  const Digest key = cache_key(compiler, job);
  if (auto image = cache.load(key)) {
    return *std::move(image);
  }
  std::vector<std::byte> image = compiler.compile(job);
  cache.store(key, image);
  return image;
}

}  // namespace tessera::internal
