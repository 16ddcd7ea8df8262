// Parameters of append_rows, see append.cu.
#pragma once

#include <cstdint>

#include "cuda/tile/pages.h"
#include "cuda/tile/work.h"

namespace tessera {

// Rows of K or of V; strides and `words` count words of AppendRows::word_bytes.
struct AppendSide {
  const void* source;  // [batch, tokens, heads, dim]
  void* target;        // the cache; paged: the batch of its strides counts pages
  Strides source_strides, target_strides;
  std::int32_t words;  // of a row
};

struct AppendRows {
  AppendSide sides[2];
  const std::int32_t* lengths;
  std::int64_t lengths_stride;
  Pages pages;
  std::int64_t capacity;  // keys that a sequence has room for
  std::int32_t batch, tokens, heads;
  std::int32_t word_bytes;  // 16, 4 or 2
};

}  // namespace tessera
