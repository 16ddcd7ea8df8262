// Parameters of write_words, see tables.cu.
#pragma once

#include <cstdint>

namespace tessera {

struct WordBatch {
  static constexpr int kMost = 960;
  std::int32_t* target;
  std::int32_t count;
  std::int32_t words[kMost];
};

}  // namespace tessera
