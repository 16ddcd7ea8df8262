#include "cpu/append.h"

#include <cstring>

#include "plan/cache.h"
#include "plan/rows.h"

namespace tessera::internal {

void cpu_append_keys(const AppendTensors& tensors) {
  const std::int64_t batch = tensors.k.shape[0];
  const std::int64_t tokens = tensors.k.shape[1];
  const KeyCache cache{tensors.key_lengths, tensors.page_table, tensors.k_cache.shape[1], tensors.k_cache.shape[0]};
  for (std::int64_t b = 0; b < batch; ++b) {
    require_room(cache, b, tokens);
  }
  const auto copy = [&](const ConstTensorView& source, const TensorView& target) {
    const auto bytes = static_cast<std::size_t>(source.shape[3] * dtype_bytes(source.dtype));
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t length = length_of(cache.key_lengths, b);
      for (std::int64_t head = 0; head < source.shape[2]; ++head) {
        const auto from = rows_of(source, b, 0, head);
        const auto to = key_rows_of(target, tensors.page_table, b, 0, head);
        for (std::int64_t token = 0; token < tokens; ++token) {
          std::memcpy(to.at(length + token), from.at(token), bytes);
        }
      }
    }
  };
  copy(tensors.k, tensors.k_cache);
  copy(tensors.v, tensors.v_cache);
}

}  // namespace tessera::internal
