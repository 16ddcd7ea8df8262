// One value to every element of a strided tensor: outputs of problems without keys or without queries.
#include "cuda/common/fill.h"

extern "C" __global__ void fill_rows(const __grid_constant__ tessera::FillRows fill) {
  const std::int64_t words = fill.rows * fill.words;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < words;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const std::int64_t row = i / fill.words;
    const std::int64_t head = row % fill.heads;
    const std::int64_t token = row / fill.heads % fill.tokens;
    const std::int64_t batch = row / fill.heads / fill.tokens;
    fill.target[batch * fill.strides.batch + token * fill.strides.token + head * fill.strides.head + i % fill.words] =
        fill.value;
  }
}
