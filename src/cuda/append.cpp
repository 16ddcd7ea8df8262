#include "cuda/append.h"

#include <algorithm>
#include <bit>

#include "core/fail.h"
#include "cuda/common/append.h"
#include "cuda/driver.h"
#include "cuda/kernel.h"
#include "cuda/tensors.h"

namespace tessera::internal {

namespace {

// The widest word that all rows consist of.
int word_bytes_of(const AppendTensors& tensors) {
  std::uint64_t bits = 0;
  for (const ConstTensorView& view :
       {tensors.k, tensors.v, ConstTensorView(tensors.k_cache), ConstTensorView(tensors.v_cache)}) {
    const auto element = static_cast<std::uint64_t>(dtype_bytes(view.dtype));
    bits |= reinterpret_cast<std::uintptr_t>(view.data) | static_cast<std::uint64_t>(view.shape[3]) * element;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      bits |= view.shape[axis] > 1 ? static_cast<std::uint64_t>(view.strides[axis]) * element : 0;
    }
  }
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2;
}

AppendSide side_of(const ConstTensorView& source, const TensorView& target, int word_bytes) {
  const std::int64_t element = dtype_bytes(source.dtype);
  const auto words = [&](const Strides& strides) {
    const auto of = [&](std::int64_t elements) { return elements * element / word_bytes; };
    return Strides{of(strides.batch), of(strides.token), of(strides.head)};
  };
  return {source.data, target.data, words(strides_of(source)), words(strides_of(target)),
          static_cast<std::int32_t>(source.shape[3] * element / word_bytes)};
}

}  // namespace

void cuda_append_keys(const AppendTensors& tensors, void* stream) {
  constexpr int kThreads = 256;
  constexpr std::int64_t kMostBlocks = 4096;
  const int device = tensors.k.device.index;
  const ContextScope context(device);
  require_on_device("k", tensors.k, device);
  require_on_device("v", tensors.v, device);
  require_on_device("k_cache", tensors.k_cache, device);
  require_on_device("v_cache", tensors.v_cache, device);
  require_on_device("key_lengths", tensors.key_lengths, device);
  require_on_device("page_table", tensors.page_table, device);
  const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  AppendRows params{};
  params.word_bytes = word_bytes_of(tensors);
  params.sides[0] = side_of(tensors.k, tensors.k_cache, params.word_bytes);
  params.sides[1] = side_of(tensors.v, tensors.v_cache, params.word_bytes);
  params.lengths = static_cast<const std::int32_t*>(tensors.key_lengths.data);
  params.lengths_stride = tensors.key_lengths.strides[0];
  params.capacity = tensors.k_cache.shape[1];
  if (!tensors.page_table.absent()) {
    params.capacity *= tensors.page_table.shape[1];
    params.pages = {static_cast<const std::int32_t*>(tensors.page_table.data), tensors.page_table.strides[0],
                    tensors.page_table.strides[1],
                    std::countr_zero(static_cast<std::uint64_t>(tensors.k_cache.shape[1])),
                    narrow(tensors.k_cache.shape[0])};
  }
  params.batch = narrow(tensors.k.shape[0]);
  params.tokens = narrow(tensors.k.shape[1]);
  params.heads = narrow(tensors.k.shape[2]);
  const std::int64_t words =
      tensors.k.shape[0] * tensors.k.shape[1] * tensors.k.shape[2] * (params.sides[0].words + params.sides[1].words);
  if (words > 0) {
    Kernel::load(device, "append", "append_rows")
        .launch({std::min(ceil_div(words, kThreads), kMostBlocks), kThreads, 0}, params, stream);
  }
}

}  // namespace tessera::internal
