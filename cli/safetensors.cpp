#include "cli/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "tessera/error.h"

namespace tessera::cli {

namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kDataAlignment = 8;
constexpr const char* kMetadataKey = "__metadata__";

constexpr std::array<std::pair<std::string_view, std::int64_t>, 14> kElementBytes{{{"F32", 4},
                                                                                   {"BF16", 2},
                                                                                   {"F16", 2},
                                                                                   {"F64", 8},
                                                                                   {"I64", 8},
                                                                                   {"I32", 4},
                                                                                   {"I16", 2},
                                                                                   {"I8", 1},
                                                                                   {"U64", 8},
                                                                                   {"U32", 4},
                                                                                   {"U16", 2},
                                                                                   {"U8", 1},
                                                                                   {"BOOL", 1},
                                                                                   {"F8_E4M3", 1}}};

[[noreturn]] void reject(const std::string& message) { throw Error(ErrorCode::io, "safetensors: " + message); }

// A name from the file, safe to print on one line.
std::string in_quotes(std::string_view name) {
  constexpr std::size_t kShown = 64;
  const std::string shown(name.substr(0, kShown));
  return nlohmann::json(name.size() > kShown ? shown + "..." : shown)
      .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::string accepted_dtypes() {
  std::string names;
  for (const auto& [name, bytes] : kElementBytes) {
    names.append(names.empty() ? "" : ", ").append(name);
  }
  return names;
}

struct HeaderTensor {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<std::int64_t>> shape;
  std::optional<std::vector<std::int64_t>> offsets;
};

// Takes the header's events. A document object model would keep only the last of two equal keys, and would hold whatever
// else a hostile header nests; here each depth admits one kind of value.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<HeaderTensor> tensors;
  std::map<std::string, std::string> metadata;

  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { refuse(std::to_string(value)); }
  bool number_float(number_float_t /*value*/, const string_t& text) override { refuse(text); }
  bool binary(binary_t& /*value*/) override { refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == nullptr) {
      refuse(std::to_string(value));
    }
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) {
      reject(
          fmt::format("tensor {}: {} {}; accepted: numbers below 2^63", in_quotes(tensors.back().name), field_, value));
    }
    list_->push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata[field_] = value;
    } else if (depth_ == 2 && field_ == "dtype" && list_ == nullptr) {
      tensors.back().dtype = value;
    } else {
      refuse(in_quotes(value));
    }
    return true;
  }

  bool start_object(std::size_t /*elements*/) override {
    if (depth_ > 1 || list_ != nullptr) {
      refuse("an object");
    }
    ++depth_;
    return true;
  }

  bool key(string_t& value) override {
    if (depth_ == 1) {
      if (!names_.insert(value).second) {
        reject(fmt::format("the name {} stands twice in the header", in_quotes(value)));
      }
      in_metadata_ = value == kMetadataKey;
      if (!in_metadata_) {
        tensors.push_back({value, {}, {}, {}});
      }
      field_.clear();
      fields_.clear();
      return true;
    }
    if (!fields_.insert(value).second) {
      reject(fmt::format("{}: the key {} stands twice", where(), in_quotes(value)));
    }
    if (!in_metadata_ && value != "dtype" && value != "shape" && value != "data_offsets") {
      reject(fmt::format("{}: key {}; accepted: dtype, shape, data_offsets", where(), in_quotes(value)));
    }
    field_ = value;
    return true;
  }

  bool end_object() override {
    --depth_;
    return true;
  }

  bool start_array(std::size_t /*elements*/) override {
    if (depth_ != 2 || in_metadata_ || list_ != nullptr) {
      refuse("an array");
    }
    if (field_ == "shape") {
      list_ = &tensors.back().shape.emplace();
    } else if (field_ == "data_offsets") {
      list_ = &tensors.back().offsets.emplace();
    } else {
      refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::json::exception& /*error*/) override {
    reject(fmt::format("the header is not JSON: error at its byte {}", position));
  }

 private:
  std::string where() const {
    if (depth_ == 0 || (tensors.empty() && !in_metadata_)) {
      return "header";
    }
    return in_metadata_ ? std::string(kMetadataKey) : "tensor " + in_quotes(tensors.back().name);
  }

  [[noreturn]] void refuse(const std::string& value) const {
    std::string accepted = "an object with dtype, shape and data_offsets";
    if (depth_ == 0) {
      accepted = "a JSON object";
    } else if (in_metadata_) {
      accepted = depth_ == 1 ? "an object of strings" : "a string";
    } else if (depth_ == 2) {
      accepted = field_ == "dtype" ? "a string" : "an array of numbers from 0";
    }
    reject(fmt::format("{}{}{}: {}; accepted: {}", where(), depth_ == 2 ? " " : "",
                       depth_ == 2 ? in_quotes(field_) : "", value, accepted));
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  std::string field_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> fields_;
  std::vector<std::int64_t>* list_ = nullptr;
};

std::uint64_t header_length(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    reject(fmt::format("the file has {} bytes; accepted: 8 bytes of header length and more", file.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  }
  if (length > kMaxSafeTensorsHeader) {
    reject(fmt::format("the header has {} bytes; accepted: {} at most", length, kMaxSafeTensorsHeader));
  }
  if (length > file.size() - kLengthBytes) {
    reject(
        fmt::format("the file is truncated: the header has {} bytes, {} follow", length, file.size() - kLengthBytes));
  }
  return length;
}

std::int64_t bytes_of_shape(const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t bytes) {
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) {
      reject(fmt::format("tensor {}: shape [{}]; accepted: fewer than 2^63 bytes", in_quotes(name),
                         fmt::join(shape, ", ")));
    }
  }
  return bytes;
}

// An entry that is complete and fits its dtype and shape.
struct Placed {
  SafeTensor tensor;  // without data
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::string describe() const {
    return fmt::format("tensor {}: data_offsets [{}, {}]", in_quotes(tensor.name), begin, end);
  }
};

void check_bytes(const SafeTensor& tensor, std::int64_t bytes) {
  const std::int64_t element_bytes = safetensors_dtype_bytes(tensor.dtype);
  if (element_bytes == 0) {
    reject(fmt::format("tensor {}: dtype {}; accepted: {}", in_quotes(tensor.name), in_quotes(tensor.dtype),
                       accepted_dtypes()));
  }
  const std::int64_t expected = bytes_of_shape(tensor.name, tensor.shape, element_bytes);
  if (bytes != expected) {
    reject(fmt::format("tensor {}: {} bytes of data; {} of shape [{}] has {}", in_quotes(tensor.name), bytes,
                       tensor.dtype, fmt::join(tensor.shape, ", "), expected));
  }
}

Placed placed(HeaderTensor& tensor) {
  if (!tensor.dtype || !tensor.shape || !tensor.offsets) {
    const char* missing = !tensor.dtype ? "dtype" : !tensor.shape ? "shape" : "data_offsets";
    reject(fmt::format("tensor {}: no {}", in_quotes(tensor.name), missing));
  }
  const auto& offsets = *tensor.offsets;
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    reject(fmt::format("tensor {}: data_offsets [{}]; accepted: [begin, end] with begin <= end", in_quotes(tensor.name),
                       fmt::join(offsets, ", ")));
  }
  Placed result{
      {std::move(tensor.name), std::move(*tensor.dtype), std::move(*tensor.shape), {}}, offsets[0], offsets[1]};
  check_bytes(result.tensor, result.end - result.begin);
  return result;
}

// Throws unless the tensors, ordered by their offsets, cover `data_bytes` once.
void check_coverage(const std::vector<Placed>& tensors, std::int64_t data_bytes) {
  std::int64_t covered = 0;
  for (const Placed& tensor : tensors) {
    if (tensor.end > data_bytes) {
      reject(fmt::format("{}, but the file has {} bytes of data: it is truncated or corrupt", tensor.describe(),
                         data_bytes));
    }
    if (tensor.begin != covered) {
      reject(fmt::format("{} {}, its predecessor ends at {}", tensor.describe(),
                         tensor.begin < covered ? "overlap another tensor" : "leave a gap", covered));
    }
    covered = tensor.end;
  }
  if (covered != data_bytes) {
    reject(fmt::format("{} bytes follow the last tensor; accepted: none", data_bytes - covered));
  }
}

}  // namespace

const SafeTensor* SafeTensors::find(std::string_view name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::int64_t safetensors_dtype_bytes(std::string_view dtype) {
  const auto* found =
      std::find_if(kElementBytes.begin(), kElementBytes.end(), [&](const auto& entry) { return entry.first == dtype; });
  return found == kElementBytes.end() ? 0 : found->second;
}

SafeTensors parse_safetensors(std::span<const std::byte> file) {
  const std::uint64_t length = header_length(file);
  const auto* begin = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  HeaderReader reader;
  nlohmann::json::sax_parse(begin, begin + length, &reader);

  std::vector<Placed> tensors;
  tensors.reserve(reader.tensors.size());
  std::transform(reader.tensors.begin(), reader.tensors.end(), std::back_inserter(tensors), placed);
  std::stable_sort(tensors.begin(), tensors.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const auto data = file.subspan(kLengthBytes + length);
  check_coverage(tensors, static_cast<std::int64_t>(data.size()));

  SafeTensors parsed;
  parsed.metadata = std::move(reader.metadata);
  parsed.tensors.reserve(tensors.size());
  for (Placed& one : tensors) {
    one.tensor.data = data.subspan(static_cast<std::size_t>(one.begin), static_cast<std::size_t>(one.end - one.begin));
    parsed.tensors.push_back(std::move(one.tensor));
  }
  return parsed;
}

std::vector<std::byte> safetensors_header(std::span<const SafeTensor> tensors,
                                          const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    header[kMetadataKey] = metadata;
  }
  std::int64_t offset = 0;
  for (const SafeTensor& tensor : tensors) {
    if (header.contains(tensor.name)) {
      reject(fmt::format("the name {} was given twice", in_quotes(tensor.name)));
    }
    const std::int64_t end = offset + static_cast<std::int64_t>(tensor.data.size());
    check_bytes(tensor, end - offset);
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((kDataAlignment - text.size() % kDataAlignment) % kDataAlignment, ' ');

  std::vector<std::byte> bytes(kLengthBytes + text.size());
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    bytes[i] = static_cast<std::byte>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 0xFFU);
  }
  std::memcpy(bytes.data() + kLengthBytes, text.data(), text.size());
  return bytes;
}

}  // namespace tessera::cli
