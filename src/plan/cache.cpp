#include "plan/cache.h"

#include <string>

#include "core/fail.h"
#include "plan/validate.h"

namespace tessera::internal {

namespace {

// The pages that the first `keys` keys of a sequence are in.
void require_pages(const ConstTensorView& table, std::int64_t batch_index, std::int64_t keys, std::int64_t page_size,
                   std::int64_t pool) {
  for (std::int64_t page = 0; page < ceil_div(keys, page_size); ++page) {
    const std::int64_t number =
        static_cast<const std::int32_t*>(table.data)[batch_index * table.strides[0] + page * table.strides[1]];
    if (number < 0 || number >= pool) {
      fail_argument("page_table[" + std::to_string(batch_index) + "][" + std::to_string(page) + "]", number,
                    "0 to " + std::to_string(pool - 1) + ", a page of the pool");
    }
  }
}

void require_length(const ConstTensorView& key_lengths, std::int64_t batch_index, std::int64_t most,
                    std::string_view what) {
  const std::int64_t length = length_of(key_lengths, batch_index);
  if (length < 0 || length > most) {
    fail_argument("key_lengths[" + std::to_string(batch_index) + "]", length,
                  "0 to " + std::to_string(most) + std::string(what));
  }
}

}  // namespace

void check_page_size(std::string_view name, std::int64_t size) {
  constexpr std::int64_t kSmallest = 16;
  if (size < kSmallest || (size & (size - 1)) != 0) {
    fail_argument(name, size, "a power of two from 16, or 0 without pages");
  }
}

void require_room(const KeyCache& cache, std::int64_t batch_index, std::int64_t more) {
  const bool paged = !cache.page_table.absent();
  const std::int64_t capacity = paged ? cache.rows * cache.page_table.shape[1] : cache.rows;
  require_length(cache.key_lengths, batch_index, capacity - more,
                 ", so that " + std::to_string(more) + " keys fit behind them");
  if (paged) {
    require_pages(cache.page_table, batch_index, length_of(cache.key_lengths, batch_index) + more, cache.rows,
                  cache.pool);
  }
}

Problem with_lengths(const Problem& problem, const ForwardTensors& tensors) {
  Problem result = problem;
  if (problem.lengths_in_tensors) {
    result.lengths_in_tensors = false;
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      require_length(tensors.key_lengths, b, problem.seq_k, "");
      result.key_lengths.push_back(length_of(tensors.key_lengths, b));
    }
  }
  for (std::int64_t b = 0; b < problem.batch && problem.paged(); ++b) {
    require_pages(tensors.page_table, b, result.sequence(b).keys, problem.page_size, tensors.k.shape[0]);
  }
  return result;
}

}  // namespace tessera::internal
