#include "cpu/standard_impl.h"

#include <algorithm>
#include <limits>

#include "cpu/blas.h"
#include "cpu/standard_executables.h"
#include "cpu/threads.h"
#include "plan/score_function.h"

namespace tessera::internal {

namespace {

class StandardImpl : public Impl {
 public:
  std::string_view name() const override { return "standard"; }
  std::string_view summary() const override {
    return "three steps on OpenBLAS sgemm that write the score matrix to memory; quadratic workspace";
  }
  std::optional<std::string> unavailable() const override { return blas_unavailable(); }

  std::optional<std::string> refuses(const Problem& problem, Pass /*pass*/, const PlanOptions& options) const override {
    if (options.device.kind != DeviceKind::cpu) {
      return "device: it runs on the CPU";
    }
    if (problem.dtype == DType::float64) {
      return "dtype: float64; accepted: float32, bfloat16, float16";
    }
    if (problem.dropout.query_stride != 1 || problem.dropout.key_stride != 1) {
      return "dropout.query_stride, dropout.key_stride: " + std::to_string(problem.dropout.query_stride) + ", " +
             std::to_string(problem.dropout.key_stride) + "; accepted: 1, 1";
    }
    if (problem.lengths_in_tensors) {
      return "lengths_in_tensors: it takes key_lengths";
    }
    if (problem.paged()) {
      return "page_size: it takes no pages";
    }
    constexpr std::int64_t kMaxLength = std::numeric_limits<std::int32_t>::max();
    if (std::max(problem.seq_q, problem.seq_k) > kMaxLength) {
      return "sequence length: " + std::to_string(std::max(problem.seq_q, problem.seq_k)) + "; accepted: up to " +
             std::to_string(kMaxLength) + ", the largest BLAS dimension";
    }
    return refuses_score_function(problem);
  }

  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass pass,
                                            const PlanOptions& options) const override {
    const int threads = options.threads > 0 ? options.threads : default_threads();
    const Problem native = with_native_score_function(problem);
    if (pass == Pass::forward) {
      return std::make_unique<StandardForward>(native, threads);
    }
    return std::make_unique<StandardBackward>(native, threads);
  }
};

}  // namespace

const Impl& standard_impl() {
  static const StandardImpl impl;
  return impl;
}

}  // namespace tessera::internal
