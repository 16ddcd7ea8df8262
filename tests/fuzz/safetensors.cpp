// Any bytes are either refused with one clear Error, or tensors that lie inside the file without overlapping, which
// survive being written and read again.
#include "cli/safetensors.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tessera/error.h"

namespace {

using tessera::cli::SafeTensor;
using tessera::cli::SafeTensors;

void require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

void check_places(const SafeTensors& tensors, std::span<const std::byte> file) {
  const std::byte* last = file.data();
  for (const SafeTensor& tensor : tensors.tensors) {
    std::int64_t bytes = tessera::cli::safetensors_dtype_bytes(tensor.dtype);
    require(bytes > 0, "a dtype without a size");
    for (const std::int64_t extent : tensor.shape) {
      require(extent >= 0, "a negative extent");
      bytes *= extent;
    }
    require(bytes == static_cast<std::int64_t>(tensor.data.size()), "data of another size than the shape says");
    require(tensor.data.empty() ||
                (std::less_equal<>()(last, tensor.data.data()) &&
                 std::less_equal<>()(tensor.data.data() + tensor.data.size(), file.data() + file.size())),
            "data outside the file or overlapping");
    last = tensor.data.empty() ? last : tensor.data.data() + tensor.data.size();
    require(tensors.find(tensor.name) == &tensor, "a tensor that is not found by its name");
  }
}

std::vector<std::byte> written(const SafeTensors& tensors) {
  std::vector<std::byte> file = tessera::cli::safetensors_header(tensors.tensors, tensors.metadata);
  for (const SafeTensor& tensor : tensors.tensors) {
    file.insert(file.end(), tensor.data.begin(), tensor.data.end());
  }
  return file;
}

void check_round_trip(const SafeTensors& tensors) {
  const std::vector<std::byte> file = written(tensors);
  const SafeTensors again = tessera::cli::parse_safetensors(file);
  require(again.tensors.size() == tensors.tensors.size() && again.metadata == tensors.metadata, "lost in a round trip");
  for (std::size_t n = 0; n < tensors.tensors.size(); ++n) {
    const SafeTensor& before = tensors.tensors[n];
    const SafeTensor* after = again.find(before.name);
    require(after != nullptr && after->dtype == before.dtype && after->shape == before.shape,
            "changed in a round trip");
    require(after->data.size() == before.data.size() &&
                (before.data.empty() || std::memcmp(after->data.data(), before.data.data(), before.data.size()) == 0),
            "data changed in a round trip");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> file = std::as_bytes(std::span(data, size));
  SafeTensors tensors;
  try {
    tensors = tessera::cli::parse_safetensors(file);
  } catch (const tessera::Error& error) {
    const std::string message = error.what();
    require(error.code() == tessera::ErrorCode::io && !message.empty(), "an Error of another kind");
    require(message.find('\n') == std::string::npos, "a message of more than one line");
    return 0;
  }
  check_places(tensors, file);
  check_round_trip(tensors);
  return 0;
}
