#include "dist/block.h"

namespace tessera::internal {

namespace {

// Tensors one after the other; without memory their shapes.
class Cursor {
 public:
  Cursor(std::byte* memory, Device device) : next_(memory), device_(device) {}
  TensorView take(DType dtype, std::initializer_list<std::int64_t> shape) {
    const TensorView view(next_, dtype, shape, device_);
    next_ = next_ == nullptr ? nullptr : next_ + view.elements() * dtype_bytes(dtype);
    return view;
  }

 private:
  std::byte* next_;
  Device device_;
};

}  // namespace

TokenBytes::TokenBytes(const Problem& problem)
    : keys(problem.heads_kv * (problem.dim_qk + problem.dim_v) * dtype_bytes(problem.dtype)),
      key_gradients(problem.heads_kv * (problem.dim_qk + problem.dim_v) * dtype_bytes(DType::float32)),
      queries(problem.heads_q * (2 * dtype_bytes(DType::float32) + problem.dim_v * dtype_bytes(problem.out_dtype()) +
                                 problem.dim_qk * dtype_bytes(problem.dtype))),
      query_gradients(problem.heads_q * problem.dim_qk * dtype_bytes(DType::float32)) {}

KeysBlock key_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens, DType dtype, Device device) {
  Cursor cursor(memory, device);
  KeysBlock block;
  block.k = cursor.take(dtype, {problem.batch, tokens, problem.heads_kv, problem.dim_qk});
  block.v = cursor.take(dtype, {problem.batch, tokens, problem.heads_kv, problem.dim_v});
  return block;
}

KeysBlock keys_block(std::byte* memory, const Problem& problem, std::int64_t tokens, Device device) {
  return key_gradients(memory, problem, tokens, problem.dtype, device);
}

QueriesBlock queries_block(std::byte* memory, const Problem& problem, std::int64_t tokens, Device device) {
  Cursor cursor(memory, device);
  QueriesBlock block;
  const auto take_statistics = [&] {
    block.lse = cursor.take(DType::float32, {problem.batch, problem.heads_q, tokens});
    block.minus_delta = cursor.take(DType::float32, {problem.batch, problem.heads_q, tokens});
  };
  if (device.kind == DeviceKind::cpu) {
    take_statistics();
  }
  block.dout = cursor.take(problem.out_dtype(), {problem.batch, tokens, problem.heads_q, problem.dim_v});
  block.q = cursor.take(problem.dtype, {problem.batch, tokens, problem.heads_q, problem.dim_qk});
  if (device.kind != DeviceKind::cpu) {
    take_statistics();
  }
  return block;
}

TensorView query_gradients(std::byte* memory, const Problem& problem, std::int64_t tokens, DType dtype, Device device) {
  return Cursor(memory, device).take(dtype, {problem.batch, tokens, problem.heads_q, problem.dim_qk});
}

}  // namespace tessera::internal
