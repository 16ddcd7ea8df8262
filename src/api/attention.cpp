#include "tessera/attention.h"

#include <array>

#include "core/fail.h"
#include "cpu/append.h"
#include "cpu/merge.h"
#include "cuda/append.h"
#include "cuda/blocks.h"
#include "plan/validate.h"

namespace tessera {

void attention_forward(const Problem& problem, const ForwardTensors& tensors, const PlanOptions& options,
                       void* stream) {
  Plan::make(problem, Pass::forward, options).run(tensors, {}, stream);
}

void attention_backward(const Problem& problem, const BackwardTensors& tensors, const PlanOptions& options,
                        void* stream) {
  Plan::make(problem, Pass::backward, options).run(tensors, {}, stream);
}

void append_keys(const AppendTensors& tensors, void* stream) {
  internal::validate(tensors);
  if (tensors.k.device.kind == DeviceKind::cuda) {
    internal::cuda_append_keys(tensors, stream);
  } else {
    internal::cpu_append_keys(tensors);
  }
}

Problem problem_of(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                   const AttentionOptions& options) {
  for (const auto& [name, view] : {std::pair{"q", &q}, std::pair{"k", &k}, std::pair{"v", &v}}) {
    if (view->rank != 4) {
      internal::fail_argument(name, view->describe(), "4 dimensions, [batch, seq, heads, dim]");
    }
  }
  Problem problem;
  problem.dtype = q.dtype;
  problem.batch = q.shape[0];
  problem.seq_q = q.shape[1];
  problem.heads_q = q.shape[2];
  problem.dim_qk = q.shape[3];
  problem.seq_k = k.shape[1];
  problem.heads_kv = k.shape[2];
  problem.dim_v = v.shape[3];
  problem.mask = options.mask;
  problem.scale = options.scale;
  problem.softcap = options.softcap;
  problem.score_function = options.score_function;
  problem.mask_function = options.mask_function;
  problem.dropout = options.dropout;
  return problem;
}

void attention_forward(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                       const TensorView& out, const TensorView& lse, const AttentionOptions& options) {
  Problem problem = problem_of(q, k, v, options);
  problem.output_dtype = out.dtype;
  attention_forward(problem, ForwardTensors{q, k, v, out, lse, {}}, PlanOptions{q.device, {}, {}, 0});
}

void merge(const ConstPartial& a, const ConstPartial& b, const Partial& result, int threads, void* stream) {
  internal::validate_merge(a, b, result);
  internal::check_threads(threads);
  if (result.out.device.kind == DeviceKind::cuda) {
    internal::require_merge_on_device(a, b, result);
    internal::device_merge(std::array{a, b}, result, stream);
    return;
  }
  internal::cpu_merge(a, b, result, threads);
}

}  // namespace tessera
