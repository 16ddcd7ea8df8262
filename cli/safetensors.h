// The safetensors file format (https://huggingface.co/docs/safetensors): 8 bytes of header length, little endian; a JSON
// header; then the data of all tensors, row-major and little endian, without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::cli {

struct SafeTensor {
  std::string name;
  std::string dtype;  // as the file spells it: "F32", "BF16", "I64", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;  // at any alignment
};

struct SafeTensors {
  std::vector<SafeTensor> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;

  // Null when there is none of that name.
  const SafeTensor* find(std::string_view name) const;
};

// The longest header that is read: a file that asks for more is broken or hostile.
inline constexpr std::uint64_t kMaxSafeTensorsHeader = 100'000'000;

// Parses a whole file. The tensors point into `file`. Throws Error(io) for anything that the format does not allow.
SafeTensors parse_safetensors(std::span<const std::byte> file);

// The length field and the header of a file with these tensors; their data follows it in the same order, without gaps.
// Throws Error(io) where parse_safetensors would.
std::vector<std::byte> safetensors_header(std::span<const SafeTensor> tensors,
                                          const std::map<std::string, std::string>& metadata = {});

// Bytes of one element of a safetensors dtype; 0 when there is no such dtype.
std::int64_t safetensors_dtype_bytes(std::string_view dtype);

}  // namespace tessera::cli
