#include "cpu/flash_impl.h"

#include <cmath>
#include <numbers>

#include "core/half.h"
#include "cpu/flash_kernels.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "plan/cache.h"
#include "plan/score_function.h"

namespace tessera::internal {

namespace {

class FlashExecutable final : public Executable {
 public:
  FlashExecutable(const Problem& problem, Pass pass, const CpuKernels& kernels, int threads)
      : kernels_(kernels), plan_(make_flash_plan(with_native_score_function(problem), pass, kernels.shape, threads)) {}

  PlanFacts facts() const override {
    PlanFacts facts;
    facts.isa = kernels_.isa;
    facts.threads = plan_.threads;
    facts.tile_q = plan_.tile_q;
    facts.tile_k = plan_.tile_k;
    facts.workspace_bytes = plan_.workspace_bytes;
    facts.expected_share =
        plan_.pass == Pass::forward ? kernels_.expected_share.forward : kernels_.expected_share.backward;
    return facts;
  }

  void run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* /*stream*/) const override {
    const Problem& problem = plan_.problem;
    if (!problem.lengths_in_tensors && !problem.paged()) {
      run_forward(plan_, tensors, workspace);
      return;
    }
    const Problem with_these = with_lengths(problem, tensors);
    if (problem.lengths_in_tensors) {
      // Items, schedules and waves are those of the lengths; the most keys of the plan take the most workspace.
      run_forward(make_flash_plan(with_these, Pass::forward, plan_.shape, plan_.threads), tensors, workspace);
    } else {
      run_forward(plan_, tensors, workspace);
    }
  }

  void run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* /*stream*/) const override {
    const Range lines{0, static_cast<std::int64_t>(plan_.line_items.size())};
    for_each(lines,
             [&](std::int64_t item, int /*thread*/) { kernels_.row_statistics(plan_, tensors, workspace, item); });
    for (const FlashWave& wave : plan_.waves) {
      for_each(wave.pack_items,
               [&](std::int64_t item, int /*thread*/) { kernels_.pack_backward(plan_, tensors, workspace, item); });
      for_each(wave.items,
               [&](std::int64_t item, int thread) { kernels_.backward(plan_, tensors, workspace, thread, item); });
    }
    for_each(lines, [&](std::int64_t item, int /*thread*/) { kernels_.reduce_dq(plan_, tensors, workspace, item); });
    if (!tensors.dbias.absent()) {
      run_bias_gradient(tensors, workspace);
    }
    if (!tensors.dsinks.absent()) {
      run_sink_gradient(tensors, workspace);
    }
  }

 private:
  void run_forward(const FlashPlan& plan, const ForwardTensors& tensors, std::span<std::byte> workspace) const {
    for (const FlashWave& wave : plan.waves) {
      for_each(wave.pack_items,
               [&](std::int64_t item, int /*thread*/) { kernels_.pack_forward(plan, tensors, workspace, item); });
      for_each(wave.items,
               [&](std::int64_t item, int thread) { kernels_.forward(plan, tensors, workspace, thread, item); });
    }
  }

  template <class Body>
  void for_each(Range items, const Body& body) const {
    parallel_items(items.size(), plan_.threads,
                   [&](std::int64_t item, int thread) { body(items.begin + item, thread); });
  }

  // A pass of its own over the scores, parallel over the elements of dbias and never over what is summed into one: so
  // the sums have one order, whatever is broadcast.
  void run_bias_gradient(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
    const Problem& problem = plan_.problem;
    const auto& shape = tensors.dbias.shape;
    const std::int64_t query_tiles = ceil_div(problem.seq_q, plan_.tile_q);
    const std::int64_t key_tiles = ceil_div(problem.seq_k, plan_.tile_k);
    const std::int64_t query_parts = shape[2] == 1 ? 1 : query_tiles;
    const std::int64_t key_parts = shape[3] == 1 ? 1 : key_tiles;
    const auto part_of = [](bool summed, std::int64_t index, std::int64_t count) {
      return summed ? Range{0, count} : Range{index, index + 1};
    };
    parallel_items(shape[0] * shape[1] * query_parts * key_parts, plan_.threads, [&](std::int64_t item, int thread) {
      const BiasPart part{
          part_of(shape[0] == 1, item / (shape[1] * query_parts * key_parts), problem.batch),
          part_of(shape[1] == 1, item / (query_parts * key_parts) % shape[1], problem.heads_q),
          part_of(shape[2] == 1, item / key_parts % query_parts, query_tiles),
          part_of(shape[3] == 1, item % key_parts, key_tiles),
      };
      kernels_.bias_gradient(plan_, tensors, workspace, thread, part);
    });
  }

  // The sink is a key with a value of zero: dP = 0, so its gradient is -P D, summed over the rows of its head.
  void run_sink_gradient(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
    const Problem& problem = plan_.problem;
    const ConstTensorView& sinks = tensors.score.sinks;
    parallel_items(problem.heads_q, plan_.threads, [&](std::int64_t head, int /*thread*/) {
      const double sink = static_cast<const float*>(sinks.data)[head * sinks.strides[0]];
      double gradient = 0;
      for (const FlashSequence& sequence : plan_.sequences) {
        const std::int64_t line = plan_.query_line(sequence, head);
        for (std::int64_t row = 0; row < sequence.span.queries; ++row) {
          const double lse = static_cast<double>(plan_.lse_log2.in(workspace)[line + row]);
          const double weight = std::isinf(lse) && lse < 0 ? 0.0 : std::exp2(sink * std::numbers::log2e - lse);
          gradient -= weight * static_cast<double>(plan_.delta.in(workspace)[line + row]);
        }
      }
      static_cast<float*>(tensors.dsinks.data)[head * tensors.dsinks.strides[0]] = static_cast<float>(gradient);
    });
  }

  const CpuKernels& kernels_;
  FlashPlan plan_;
};

// bfloat16 products take their inputs as they are stored, and apply the scale to a maximum: it has to be positive.
const CpuKernels& kernels_for(const Problem& problem, Pass pass, const PlanOptions& options) {
  const CpuKernels& selected = select_kernels(options.isa);
  const bool stored_as_bfloat16 =
      problem.dtype == DType::bfloat16 && (pass == Pass::forward || problem.out_dtype() == DType::bfloat16);
  const CpuKernels& kernels =
      selected.bfloat16 != nullptr && stored_as_bfloat16 && problem.softmax_scale() > 0 ? *selected.bfloat16 : selected;
  const bool pays = kernels.otherwise == nullptr || isa_is_forced(options.isa) || kernels.pays(problem, pass);
  return pays ? kernels : *kernels.otherwise;
}

class FlashImpl final : public Impl {
 public:
  std::string_view name() const override { return "flash"; }
  std::string_view summary() const override {
    return "FlashAttention on CPU vector units: every feature, memory linear in the sequence length";
  }
  std::optional<std::string> refuses(const Problem& problem, Pass /*pass*/, const PlanOptions& options) const override {
    if (options.device.kind != DeviceKind::cpu) {
      return "device: it runs on the CPU";
    }
    if (problem.dtype == DType::float64) {
      return "dtype: float64; it takes float32, bfloat16 and float16";
    }
    return refuses_score_function(problem);
  }
  std::unique_ptr<const Executable> prepare(const Problem& problem, Pass pass,
                                            const PlanOptions& options) const override {
    const int threads = options.threads > 0 ? options.threads : default_threads();
    return std::make_unique<FlashExecutable>(problem, pass, kernels_for(problem, pass, options), threads);
  }
};

}  // namespace

const Impl& flash_impl() {
  static const FlashImpl impl;
  return impl;
}

}  // namespace tessera::internal
