// Whole files in, whole files out.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace tessera::cli {

// Throws Error(io) that names the file and the reason.
std::vector<std::byte> read_file(const std::filesystem::path& path);

// Writes the pieces one after the other to a temporary name in the same folder, flushes them to the disk and renames: a
// reader sees the old file or the whole new one, and a failure leaves the old one. Throws Error(io).
void write_file_atomically(const std::filesystem::path& path, std::span<const std::span<const std::byte>> pieces);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

// Throws Error(io) when write_file_atomically could not: to fail before the work instead of after it.
void require_writable(const std::filesystem::path& path);

}  // namespace tessera::cli
