#include <algorithm>
#include <new>

#include "core/fail.h"
#include "plan/impl.h"

namespace tessera::internal {

namespace {

std::optional<std::string> refusal(const Impl& impl, const Problem& problem, Pass pass, const PlanOptions& options) {
  if (auto reason = impl.unavailable()) {
    return reason;
  }
  if (auto reason = impl.refuses(problem, pass, options)) {
    return reason;
  }
  return impl.lacks(problem, pass, options);
}

TileSchedule::Counts count_tiles(const Problem& problem, std::int64_t tile_q, std::int64_t tile_k) {
  TileSchedule::Counts total;
  const std::int64_t schedules = problem.schedules_per_sequence();
  const bool alike = problem.sequences_are_alike();
  const std::int64_t sequences = alike ? std::min<std::int64_t>(problem.batch, 1) : problem.batch;
  const std::int64_t times = (alike ? problem.batch : 1) * (problem.heads_q / schedules);
  for (std::int64_t b = 0; b < sequences; ++b) {
    for (std::int64_t head = 0; head < schedules; ++head) {
      const TileSchedule::Counts counts = problem.schedule(b, tile_q, tile_k, head).count();
      total.full += times * counts.full;
      total.partial += times * counts.partial;
      total.skipped += times * counts.skipped;
      total.pairs += times * counts.pairs;
    }
  }
  return total;
}

void add_counts(PlanFacts& facts, const Problem& problem, Pass pass) {
  const auto qk = static_cast<double>(problem.dim_qk);
  const auto v = static_cast<double>(problem.dim_v);
  const double flops_per_pair = pass == Pass::forward ? 2 * (qk + v) : 2 * (3 * qk + 2 * v);
  facts.tiles = count_tiles(problem, std::max<std::int64_t>(facts.tile_q, 1), std::max<std::int64_t>(facts.tile_k, 1));
  const double visited = static_cast<double>(facts.tiles.full + facts.tiles.partial);
  facts.flops = visited * static_cast<double>(facts.tile_q * facts.tile_k) * flops_per_pair;
  facts.flops_of_pairs = static_cast<double>(facts.tiles.pairs) * flops_per_pair;
}

std::string names_of(std::span<const Impl* const> impls) {
  std::string names;
  for (const Impl* impl : impls) {
    names += (names.empty() ? "" : ", ") + std::string(impl->name());
  }
  return names;
}

}  // namespace

void Executable::run(const ForwardTensors& /*tensors*/, std::span<std::byte> /*workspace*/, void* /*stream*/) const {
  throw Error(ErrorCode::internal, "this plan was made for the backward pass");
}

void Executable::run(const BackwardTensors& /*tensors*/, std::span<std::byte> /*workspace*/, void* /*stream*/) const {
  throw Error(ErrorCode::internal, "this plan was made for the forward pass");
}

std::byte* Executable::allocate_workspace(std::size_t bytes, void* /*stream*/) const {
  return static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kWorkspaceAlignment}));
}

void Executable::release_workspace(std::byte* memory, void* /*stream*/) const noexcept {
  ::operator delete(memory, std::align_val_t{kWorkspaceAlignment});
}

Selection select(std::span<const Impl* const> impls, const Problem& problem, Pass pass, const PlanOptions& options) {
  std::vector<std::string> refusals;
  bool name_known = options.impl.empty();
  for (const Impl* impl : impls) {
    if (!options.impl.empty() && options.impl != impl->name()) {
      continue;
    }
    name_known = true;
    if (const auto reason = refusal(*impl, problem, pass, options)) {
      refusals.push_back(std::string(impl->name()) + ": " + *reason);
      continue;
    }
    Selection selection;
    selection.executable = impl->prepare(problem, pass, options);
    selection.facts = selection.executable->facts();
    selection.facts.impl = impl->name();
    selection.facts.refusals = std::move(refusals);
    add_counts(selection.facts, problem, pass);
    return selection;
  }
  if (!name_known) {
    fail_argument("impl", options.impl, names_of(impls));
  }
  std::string message = "no implementation accepts this problem (" + problem.describe() + ")";
  for (const std::string& reason : refusals) {
    message += "; " + reason;
  }
  throw Error(ErrorCode::unsupported, message);
}

}  // namespace tessera::internal
