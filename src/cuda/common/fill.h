// Parameters of fill_rows, see fill.cu.
#pragma once

#include <cstdint>

#include "cuda/tile/work.h"

namespace tessera {

// [batch, tokens, heads] rows of `words` 32-bit words; strides count 32-bit words as well.
struct FillRows {
  std::uint32_t* target;
  Strides strides;
  std::int64_t rows;
  std::int64_t tokens;
  std::int32_t heads;
  std::int32_t words;
  std::uint32_t value;
};

}  // namespace tessera
