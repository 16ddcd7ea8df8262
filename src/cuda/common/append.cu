// New keys and values into a cache, behind the ones in use: bound by the latency of a launch at the few rows of a decoding step.
#include "cuda/common/append.h"

namespace tessera {

namespace {

template <class Word>
__device__ void append(const AppendRows& params) {
  const std::int64_t rows = static_cast<std::int64_t>(params.batch) * params.tokens * params.heads;
  const std::int64_t words_of_k = rows * params.sides[0].words;
  const std::int64_t words = words_of_k + rows * params.sides[1].words;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < words;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const AppendSide& side = params.sides[i < words_of_k ? 0 : 1];
    const std::int64_t index = i < words_of_k ? i : i - words_of_k;
    const auto word = static_cast<std::int32_t>(index % side.words);
    const std::int64_t row = index / side.words;
    const auto head = static_cast<std::int32_t>(row % params.heads);
    const auto token = static_cast<std::int32_t>(row / params.heads % params.tokens);
    const auto sequence = static_cast<std::int32_t>(row / params.heads / params.tokens);
    const std::int64_t key = static_cast<std::int64_t>(params.lengths[sequence * params.lengths_stride]) + token;
    // What has no room is left out: a kernel cannot refuse.
    if (key < 0 || key >= params.capacity) {
      continue;
    }
    std::int64_t batch = sequence;
    std::int64_t position = key;
    if (params.pages.table != nullptr) {
      const std::int64_t page = key >> params.pages.size_log2;
      batch = params.pages.table[sequence * params.pages.batch_stride + page * params.pages.page_stride];
      position -= page << params.pages.size_log2;
      if (batch < 0 || batch >= params.pages.pool) {
        continue;
      }
    }
    const Strides& to = side.target_strides;
    const Strides& from = side.source_strides;
    static_cast<Word*>(side.target)[batch * to.batch + position * to.token + head * to.head + word] =
        static_cast<const Word*>(side.source)[sequence * from.batch + token * from.token + head * from.head + word];
  }
}

}  // namespace

}  // namespace tessera

extern "C" __global__ void __launch_bounds__(256) append_rows(const __grid_constant__ tessera::AppendRows params) {
  if (params.word_bytes == 16) {
    tessera::append<uint4>(params);
  } else if (params.word_bytes == 4) {
    tessera::append<std::uint32_t>(params);
  } else {
    tessera::append<std::uint16_t>(params);
  }
}
