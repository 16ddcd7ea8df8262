#include <algorithm>
#include <cstdint>

#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/embedded.h"
#include "cuda/schedule.h"
#include "cuda/sm90/executable.h"
#include "cuda/sm90_impl.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kMostDim = 256;
constexpr std::int64_t kDimGranule = 8;  // columns in 16 bytes
constexpr std::int64_t kMostTokens = std::int64_t{1} << 28;

std::optional<std::string> refuses_device(const PlanOptions& options) {
  if (options.device.kind != DeviceKind::cuda) {
    return "device: it runs on CUDA devices";
  }
  if (!options.isa.empty()) {
    return "isa: instruction sets are those of the CPU";
  }
  return std::nullopt;
}

std::optional<std::string> lacks_capability(const PlanOptions& options) {
  const CudaDeviceInfo& device = cuda_device(options.device.index);
  if (device.capability_major != 9 || device.capability_minor != 0) {
    return "device: it needs compute capability 9.0, and " + device.name + " has " +
           std::to_string(device.capability_major) + "." + std::to_string(device.capability_minor);
  }
  return std::nullopt;
}

std::optional<std::string> refuses_types(const Problem& problem) {
  if (problem.dtype != DType::bfloat16 && problem.dtype != DType::float16) {
    return "dtype: it takes bfloat16 and float16";
  }
  if (problem.out_dtype() != problem.dtype) {
    return "output_dtype: it writes the problem's dtype";
  }
  for (const auto& [name, dim] : {std::pair{"dim_qk", problem.dim_qk}, std::pair{"dim_v", problem.dim_v}}) {
    if (dim % kDimGranule != 0 || dim > kMostDim) {
      return std::string(name) + ": it takes multiples of 8 up to 256";
    }
  }
  if (std::max({problem.seq_q, problem.seq_k, problem.total_q() / std::max<std::int64_t>(problem.batch, 1),
                problem.ragged() ? problem.total_q() : 0, problem.ragged() ? problem.total_k() : 0}) > kMostTokens) {
    return "seq: it takes up to 2^28 tokens";
  }
  return std::nullopt;
}

std::optional<std::string> refuses_features(const Problem& problem) {
  if (problem.softmax_scale() <= 0) {
    return "scale: it takes positive ones";
  }
  return std::nullopt;
}

// Of the score program.
std::optional<std::string> refuses_program(const Problem& problem, Pass pass) {
  constexpr std::int64_t kMostNarrowDim = 128;
  constexpr std::int64_t kBlockKeys = 64;  // of a Philox block
  constexpr int kAllDropped = 256;         // whose scale of kept weights is infinite
  const bool wide = std::max(problem.dim_qk, problem.dim_v) > kMostNarrowDim;
  const bool dropout = problem.dropout.threshold() != 0;
  if (pass == Pass::backward && wide && needs_lists(problem.mask)) {
    return "mask: its backward pass takes segments and block masks up to head dim 128";
  }
  if (pass == Pass::backward && problem.bias_shape) {
    return "bias_shape: its backward pass has no gradient of a bias";
  }
  if (dropout && wide) {
    return "dropout: it takes it up to head dim 128";
  }
  if (pass == Pass::backward && problem.dropout.threshold() == kAllDropped) {
    return "dropout: its backward pass takes probabilities below 1";
  }
  if (dropout && (problem.dropout.key_stride != 1 || problem.dropout.key_start % kBlockKeys != 0)) {
    return "dropout: it takes keys that follow each other from a multiple of 64 on";
  }
  if (problem.sinks && problem.total_k() == 0) {
    return "sinks: it needs a key";
  }
  if (problem.lengths_in_tensors) {
    return "lengths_in_tensors: it takes key_lengths";
  }
  if (problem.paged()) {
    return "page_size: it takes no pages";
  }
  if (pass == Pass::backward && wide && needs_lists(problem.mask)) {
    return "mask: its backward pass takes segments and block masks up to head dim 128";
  }
  return std::nullopt;
}

class Sm90Impl final : public Impl {
 public:
  std::string_view name() const override { return "sm90"; }
  std::string_view summary() const override {
    return "FlashAttention on Hopper GPUs: warpgroup matrix products fed by the copy engine, 16-bit inputs";
  }
  std::optional<std::string> unavailable() const override {
    if (const auto reason = cuda_unavailable()) {
      return reason;
    }
    return embedded_images().empty() ? std::optional<std::string>("this build has no kernels") : std::nullopt;
  }
  DeviceKind device() const override { return DeviceKind::cuda; }
  std::optional<std::string> refuses(const Problem& problem, Pass pass, const PlanOptions& options) const override {
    if (auto reason = refuses_device(options)) {
      return reason;
    }
    if (auto reason = refuses_types(problem)) {
      return reason;
    }
    if (auto reason = refuses_features(problem)) {
      return reason;
    }
    return refuses_program(problem, pass);
  }
  std::optional<std::string> refuses_odd_strides() const override { return "strides: it takes multiples of 16 bytes"; }
  std::optional<std::string> lacks(const Problem& problem, Pass pass, const PlanOptions& options) const override {
    if (auto reason = lacks_capability(options)) {
      return reason;
    }
    return pass == Pass::forward ? forward_missing(problem, options) : backward_missing(problem, options);
  }
  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass pass,
                                            const PlanOptions& options) const override {
    return pass == Pass::forward ? make_forward(problem, options) : make_backward(problem, options);
  }
};

}  // namespace

const Impl& sm90_impl() {
  static const Sm90Impl impl;
  return impl;
}

}  // namespace tessera::internal
