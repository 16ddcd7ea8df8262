#include <algorithm>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/embedded.h"
#include "cuda/sm80/executable.h"
#include "cuda/sm80_impl.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kSm80MostTokens = std::int64_t{1} << 28;

std::optional<std::string> refuses_sm80_device(const PlanOptions& options) {
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
  if (device.capability_major < 8) {
    return "device: it needs compute capability 8.0 or higher, and " + device.name + " has " +
           std::to_string(device.capability_major) + "." + std::to_string(device.capability_minor);
  }
  return std::nullopt;
}

std::optional<std::string> refuses_sm80_problem(const Problem& problem) {
  if (problem.dtype == DType::float64) {
    return "dtype: it takes float32, bfloat16 and float16";
  }
  if (problem.lengths_in_tensors) {
    return "lengths_in_tensors: it takes key_lengths";
  }
  if (problem.paged()) {
    return "page_size: it takes no pages";
  }
  if (std::max({problem.seq_q, problem.seq_k, problem.ragged() ? problem.total_q() : 0,
                problem.ragged() ? problem.total_k() : 0}) > kSm80MostTokens) {
    return "seq: it takes up to 2^28 tokens";
  }
  return std::nullopt;
}

class Sm80Impl final : public Impl {
 public:
  std::string_view name() const override { return "sm80"; }
  std::string_view summary() const override {
    return "FlashAttention on GPUs since Ampere: warp-wide matrix products, every feature, 16-bit and float32 inputs";
  }
  std::optional<std::string> unavailable() const override {
    if (const auto reason = cuda_unavailable()) {
      return reason;
    }
    return embedded_images().empty() ? std::optional<std::string>("this build has no kernels") : std::nullopt;
  }
  DeviceKind device() const override { return DeviceKind::cuda; }
  std::optional<std::string> refuses(const Problem& problem, Pass /*pass*/, const PlanOptions& options) const override {
    if (auto reason = refuses_sm80_device(options)) {
      return reason;
    }
    return refuses_sm80_problem(problem);
  }
  std::optional<std::string> lacks(const Problem& problem, Pass pass, const PlanOptions& options) const override {
    if (auto reason = lacks_capability(options)) {
      return reason;
    }
    return pass == Pass::forward ? sm80_forward_missing(problem, options) : sm80_backward_missing(problem, options);
  }
  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass pass,
                                            const PlanOptions& options) const override {
    return pass == Pass::forward ? make_sm80_forward(problem, options) : make_sm80_backward(problem, options);
  }
};

}  // namespace

const Impl& sm80_impl() {
  static const Sm80Impl impl;
  return impl;
}

}  // namespace tessera::internal
