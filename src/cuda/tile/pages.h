// Where the pages of a paged cache are.
#pragma once

#include <cstdint>

namespace tessera {

// Page p of sequence b is table[b * batch_stride + p * page_stride] of the pool. `table` is null where there are no pages.
struct Pages {
  const std::int32_t* table;
  std::int64_t batch_stride, page_stride;
  std::int32_t size_log2;  // keys in a page
  std::int32_t pool;       // pages in it
};

}  // namespace tessera
