// Parameters of the kernels in blocks.cu and merge.cu: element-wise work on the blocks of tokens that ranks exchange.
#pragma once

#include <cstdint>

namespace tessera {

// Strides in elements, outermost axis first.
struct BlockView {
  void* data;
  std::int64_t strides[4];
  std::int32_t dtype;  // DType
};

// target = terms[0] + .. + terms[count - 1], summed in float32; `value` where there are none.
struct BlockSum {
  static constexpr int kMostTerms = 5;
  BlockView target;
  BlockView terms[kMostTerms];
  std::int64_t shape[4];
  std::int32_t count;
  float value;
};

// Random numbers of mean 0 and variance 1, for measurements.
struct BlockNoise {
  BlockView target;  // one axis
  std::int64_t count;
  std::uint32_t seed;
};

// The union of up to five partial results [batch, tokens, heads, dim] with LSE [batch, heads, tokens], whose views here have
// the order of axes of `out`: batch, tokens, heads.
struct BlockMerge {
  static constexpr int kMostTerms = 5;
  BlockView out;
  BlockView lse;
  BlockView outs[kMostTerms];
  BlockView lses[kMostTerms];
  std::int64_t shape[4];
  std::int32_t count;
};

// -D = dLSE - rowsum(dO o O); views of statistics as in BlockMerge.
struct BlockDelta {
  BlockView dout;
  BlockView out;
  BlockView dlse;  // its data may be null
  BlockView target;
  std::int64_t shape[4];
};

// lines[batch, head, token] += factor * numbers[batch, head].
struct BlockLines {
  BlockView lines;    // axes: batch, heads, tokens
  BlockView numbers;  // batch, heads
  std::int64_t shape[3];
  float factor;
};

// dsinks[head] = sum of exp(sink - lse) * minus_delta over batch and tokens.
struct BlockSinks {
  BlockView sinks;  // heads
  BlockView dsinks;
  BlockView lse;  // batch, heads, tokens
  BlockView minus_delta;
  std::int64_t shape[3];
};

}  // namespace tessera
