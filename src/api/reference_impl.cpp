#include "api/reference_impl.h"

#include "plan/cache.h"
#include "plan/score_function.h"
#include "reference/reference.h"

namespace tessera::internal {

namespace {

class ReferenceExecutable final : public Executable {
 public:
  explicit ReferenceExecutable(const Problem& problem) : problem_(with_native_score_function(problem)) {}

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.tile_q = 1;
    facts.tile_k = 1;
    return facts;
  }
  void run(const ForwardTensors& tensors, std::span<std::byte> /*workspace*/, void* /*stream*/) const override {
    reference_forward(problem_.lengths_in_tensors || problem_.paged() ? with_lengths(problem_, tensors) : problem_,
                      tensors);
  }
  void run(const BackwardTensors& tensors, std::span<std::byte> /*workspace*/, void* /*stream*/) const override {
    reference_backward(problem_, tensors);
  }

 private:
  Problem problem_;
};

class ReferenceImpl final : public Impl {
 public:
  std::string_view name() const override { return "reference"; }
  std::string_view summary() const override {
    return "the oracle: double precision, textbook, every feature, unoptimised";
  }
  std::optional<std::string> refuses(const Problem& problem, Pass pass, const PlanOptions& options) const override {
    if (options.part_of_keys && pass == Pass::backward) {
      return "part_of_keys: it computes LSE again, from the keys that it sees";
    }
    if (options.device.kind != DeviceKind::cpu) {
      return "device: it runs on the CPU";
    }
    return refuses_score_function(problem);
  }
  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass /*pass*/,
                                            const PlanOptions& /*options*/) const override {
    return std::make_unique<ReferenceExecutable>(problem);
  }
};

}  // namespace

const Impl& reference_impl() {
  static const ReferenceImpl impl;
  return impl;
}

}  // namespace tessera::internal
