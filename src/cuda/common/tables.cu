// Small tables to device memory in the parameters of a kernel: ordered by the stream, without a copy from host memory that
// would have to outlive the call, and captured by value in a graph.
#include "cuda/common/tables.h"

extern "C" __global__ void write_words(const __grid_constant__ tessera::WordBatch batch) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < batch.count) {
    batch.target[i] = batch.words[i];
  }
}
