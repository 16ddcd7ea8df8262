// The tensors of one rank's tokens, which travel together.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/problem.h"
#include "tessera/tensor_view.h"

namespace tessera::internal {

// [batch, tokens, heads, dim]; Void is void or const void.
template <class Void>
struct BasicKeysBlock {
  BasicTensorView<Void> k, v;
};
using KeysBlock = BasicKeysBlock<void>;
using ConstKeysBlock = BasicKeysBlock<const void>;

// LSE and -D are float32 [batch, heads, tokens].
template <class Void>
struct BasicQueriesBlock {
  BasicTensorView<Void> lse, minus_delta, dout, q;
};
using QueriesBlock = BasicQueriesBlock<void>;
using ConstQueriesBlock = BasicQueriesBlock<const void>;

inline ConstKeysBlock as_const(const KeysBlock& block) { return {block.k, block.v}; }
inline ConstQueriesBlock as_const(const QueriesBlock& block) {
  return {block.lse, block.minus_delta, block.dout, block.q};
}

// Bytes of one token of one sequence: 2 b d Hkv for keys of b-byte elements, their gradients in float32;
// 2 b d Hq + 8 Hq for queries with dO, LSE and D, and dQ in float32.
struct TokenBytes {
  explicit TokenBytes(const Problem& problem);
  std::int64_t keys, key_gradients, queries, query_gradients;
};

// Views into the memory of a block, without gaps. Statistics come first on the CPU, where wider elements keep narrower ones
// aligned, and last on a device, whose kernels want 16 bytes for tokens.
KeysBlock keys_block(std::byte* memory, const Problem& problem, std::int64_t tokens, Device device);
QueriesBlock queries_block(std::byte* memory, const Problem& problem, std::int64_t tokens, Device device);
template <class Void>
std::vector<BasicTensorView<Void>> in_memory_order(const BasicQueriesBlock<Void>& block, Device device) {
  if (device.kind == DeviceKind::cpu) {
    return {block.lse, block.minus_delta, block.dout, block.q};
  }
  return {block.dout, block.q, block.lse, block.minus_delta};
}
// Of their gradients, in the dtype of a sum (float32) or of one task.
KeysBlock key_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens, DType dtype, Device device);
TensorView query_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens, DType dtype, Device device);

}  // namespace tessera::internal
