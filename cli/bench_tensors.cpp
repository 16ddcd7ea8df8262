#include "cli/bench_tensors.h"

#include "cuda/blocks.h"

namespace tessera::cli {

BenchTensors::BenchTensors(const Problem& problem, const Device& device, std::uint64_t seed) : device_(device) {
  if (device.kind == DeviceKind::cpu) {
    TensorOptions options;
    options.seed = seed;
    host_ = std::make_unique<ProblemTensors>(problem, options);
    return;
  }
  stream_ = std::make_unique<internal::DeviceStream>(device.index);
  const auto noise = [&](DType dtype, const std::vector<std::int64_t>& shape) {
    const TensorView view = take(dtype, shape);
    internal::device_noise(view, static_cast<std::uint32_t>(seed * 16 + memory_.size()), stream_->handle());
    return view;
  };
  const auto random = [&](DType dtype, bool queries, std::int64_t dim) {
    return noise(dtype, token_shape(problem, queries, dim));
  };
  const DType out = problem.out_dtype();
  views_.q = random(problem.dtype, true, problem.dim_qk);
  views_.k = random(problem.dtype, false, problem.dim_qk);
  views_.v = random(problem.dtype, false, problem.dim_v);
  views_.dout = random(out, true, problem.dim_v);
  views_.out = out_ = take(out, token_shape(problem, true, problem.dim_v));
  views_.lse = lse_ = take(DType::float32, lse_shape(problem));
  views_.dq = take(out, token_shape(problem, true, problem.dim_qk));
  views_.dk = take(out, token_shape(problem, false, problem.dim_qk));
  views_.dv = take(out, token_shape(problem, false, problem.dim_v));
  if (problem.bias_shape) {
    views_.score.bias = noise(problem.bias_dtype, {problem.bias_shape->begin(), problem.bias_shape->end()});
  }
  if (problem.alibi) {
    views_.score.alibi_slopes = noise(DType::float32, {problem.heads_q});
  }
  if (problem.sinks) {
    views_.score.sinks = noise(DType::float32, {problem.heads_q});
  }
  stream_->synchronize();
}

TensorView BenchTensors::take(DType dtype, const std::vector<std::int64_t>& shape) {
  TensorView view(nullptr, dtype, shape, {}, device_);
  memory_.emplace_back(device_.index, static_cast<std::size_t>(view.elements() * dtype_bytes(dtype)));
  view.data = memory_.back().data();
  return view;
}

ForwardTensors BenchTensors::forward() const {
  return host_ ? host_->forward() : ForwardTensors{views_.q, views_.k, views_.v, out_, lse_, views_.score};
}

BackwardTensors BenchTensors::backward() const { return host_ ? host_->backward() : views_; }

}  // namespace tessera::cli
