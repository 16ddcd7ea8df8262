#include <cstdint>

#include "core/fail.h"
#include "cuda/decode/config.h"
#include "cuda/decode/executable.h"
#include "cuda/decode_impl.h"
#include "cuda/device.h"
#include "cuda/embedded.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kMostDim = 256;
constexpr std::int64_t kDimGranule = 8;    // columns in 16 bytes
constexpr std::int64_t kMostQueries = 16;  // of contiguous keys: more are as many rows as other kernels want
constexpr std::int64_t kMostTokens = std::int64_t{1} << 28;
constexpr std::int64_t kMostSteps = std::int64_t{1} << 30;

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
  if (device.capability_major < 8) {
    return "device: it needs compute capability 8.0 or higher, and " + device.name + " has " +
           std::to_string(device.capability_major) + "." + std::to_string(device.capability_minor);
  }
  return std::nullopt;
}

std::optional<std::string> refuses_types(const Problem& problem) {
  if (problem.dtype != DType::bfloat16 && problem.dtype != DType::float16) {
    return "dtype: it takes bfloat16 and float16";
  }
  for (const auto& [name, dim] : {std::pair{"dim_qk", problem.dim_qk}, std::pair{"dim_v", problem.dim_v}}) {
    if (dim % kDimGranule != 0 || dim > kMostDim) {
      return std::string(name) + ": it takes multiples of 8 up to 256";
    }
  }
  return std::nullopt;
}

std::optional<std::string> refuses_shape(const Problem& problem) {
  if (problem.ragged()) {
    return "cu_seqlens_q: it takes the batch layout";
  }
  if (problem.seq_q > kMostQueries && !problem.paged() && !problem.lengths_in_tensors) {
    return "seq_q: it takes up to 16 queries where K and V are neither paged nor of lengths in tensors";
  }
  if (problem.seq_q > kMostTokens || problem.seq_k > kMostTokens) {
    return "seq: it takes up to 2^28 tokens";
  }
  // Of the narrowest tile of rows.
  const std::int64_t row_tiles = ceil_div(problem.seq_q * problem.group_size(), 16);
  const std::int64_t steps = ceil_div(problem.seq_k, decode::kStepKeys) + 1;
  const double all = static_cast<double>(problem.batch * problem.heads_kv) * static_cast<double>(row_tiles) *
                     static_cast<double>(steps);
  if (all > static_cast<double>(kMostSteps)) {
    return "batch * heads_q * seq_q * seq_k: it takes up to 2^30 tiles of 16 rows and 16 keys";
  }
  return std::nullopt;
}

std::optional<std::string> refuses_features(const Problem& problem) {
  if (problem.bias_shape) {
    return "bias_shape: it takes no bias";
  }
  if (problem.dropout.threshold() != 0) {
    return "dropout: it has none";
  }
  if (problem.score_function) {
    return "score_function: it takes none";
  }
  if (problem.mask.has_segments()) {
    return "mask: it takes no segments";
  }
  if (problem.mask.has_blocks()) {
    return "mask: it takes no block masks";
  }
  return std::nullopt;
}

class DecodeImpl final : public Impl {
 public:
  std::string_view name() const override { return "decode"; }
  std::string_view summary() const override {
    return "short queries against long keys on GPUs: keys split over all blocks and read once, paged and growing "
           "caches";
  }
  std::optional<std::string> unavailable() const override {
    if (const auto reason = cuda_unavailable()) {
      return reason;
    }
    return embedded_images().empty() ? std::optional<std::string>("this build has no kernels") : std::nullopt;
  }
  DeviceKind device() const override { return DeviceKind::cuda; }
  std::optional<std::string> refuses(const Problem& problem, Pass pass, const PlanOptions& options) const override {
    if (pass != Pass::forward) {
      return "pass: it has the forward pass alone";
    }
    for (auto reason :
         {refuses_device(options), refuses_types(problem), refuses_shape(problem), refuses_features(problem)}) {
      if (reason) {
        return reason;
      }
    }
    return std::nullopt;
  }
  std::optional<std::string> refuses_odd_strides() const override { return "strides: it takes multiples of 16 bytes"; }
  std::optional<std::string> lacks(const Problem& problem, Pass /*pass*/, const PlanOptions& options) const override {
    if (auto reason = lacks_capability(options)) {
      return reason;
    }
    return decode_missing(problem, options);
  }
  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass /*pass*/,
                                            const PlanOptions& options) const override {
    return make_decode(problem, options);
  }
};

}  // namespace

const Impl& decode_impl() {
  static const DecodeImpl impl;
  return impl;
}

}  // namespace tessera::internal
