#include "dist/block.h"

namespace tessera::internal {

namespace {

// Tensors one after the other.
class Cursor {
 public:
  explicit Cursor(std::byte* memory) : next_(memory) {}
  TensorView take(DType dtype, std::initializer_list<std::int64_t> shape) {
    const TensorView view(next_, dtype, shape);
    next_ += view.elements() * dtype_bytes(dtype);
    return view;
  }

 private:
  std::byte* next_;
};

KeysBlock keys_of(std::byte* memory, const Problem& problem, std::int64_t tokens, DType dtype) {
  Cursor cursor(memory);
  KeysBlock block;
  block.k = cursor.take(dtype, {problem.batch, tokens, problem.heads_kv, problem.dim_qk});
  block.v = cursor.take(dtype, {problem.batch, tokens, problem.heads_kv, problem.dim_v});
  return block;
}

}  // namespace

TokenBytes::TokenBytes(const Problem& problem)
    : keys(problem.heads_kv * (problem.dim_qk + problem.dim_v) * dtype_bytes(problem.dtype)),
      key_gradients(problem.heads_kv * (problem.dim_qk + problem.dim_v) * dtype_bytes(DType::float32)),
      queries(problem.heads_q * (2 * dtype_bytes(DType::float32) + problem.dim_v * dtype_bytes(problem.out_dtype()) +
                                 problem.dim_qk * dtype_bytes(problem.dtype))),
      query_gradients(problem.heads_q * problem.dim_qk * dtype_bytes(DType::float32)) {}

KeysBlock keys_block(std::byte* memory, const Problem& problem, std::int64_t tokens) {
  return keys_of(memory, problem, tokens, problem.dtype);
}

KeysBlock key_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens) {
  return keys_of(memory, problem, tokens, DType::float32);
}

QueriesBlock queries_block(std::byte* memory, const Problem& problem, std::int64_t tokens) {
  Cursor cursor(memory);
  QueriesBlock block;
  block.lse = cursor.take(DType::float32, {problem.batch, problem.heads_q, tokens});
  block.minus_delta = cursor.take(DType::float32, {problem.batch, problem.heads_q, tokens});
  block.dout = cursor.take(problem.out_dtype(), {problem.batch, tokens, problem.heads_q, problem.dim_v});
  block.q = cursor.take(problem.dtype, {problem.batch, tokens, problem.heads_q, problem.dim_qk});
  return block;
}

TensorView query_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens) {
  return Cursor(memory).take(DType::float32, {problem.batch, tokens, problem.heads_q, problem.dim_qk});
}

}  // namespace tessera::internal
