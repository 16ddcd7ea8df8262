#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>

#include "plan/explain.h"

namespace tessera {

namespace {

std::string with_unit(double value, double base, const std::array<const char*, 5>& units) {
  std::size_t unit = 0;
  while (value >= base && unit + 1 < units.size()) {
    value /= base;
    ++unit;
  }
  std::ostringstream text;
  text.precision(value >= 100 ? 0 : value >= 10 ? 1 : 2);
  text << std::fixed << value << ' ' << units[unit];
  return text.str();
}

std::string bytes_text(double bytes) { return with_unit(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB"}); }
std::string flops_text(double flops) { return with_unit(flops, 1000, {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"}); }

std::string time_text(double seconds) {
  return seconds < 1e-3  ? with_unit(seconds * 1e6, 1e9, {"us", "", "", "", ""})
         : seconds < 1.0 ? with_unit(seconds * 1e3, 1e9, {"ms", "", "", "", ""})
                         : with_unit(seconds, 1e9, {"s", "", "", "", ""});
}

std::string percent(double share) {
  std::ostringstream text;
  text.precision(1);
  text << std::fixed << 100 * share << " %";
  return text.str();
}

// Inputs and outputs, each once: Q, the keys in use, and O.
double linear_bytes(const Problem& problem) {
  const auto element = static_cast<double>(dtype_bytes(problem.dtype));
  double rows = static_cast<double>(problem.total_q() * problem.heads_q);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    rows += static_cast<double>(problem.sequence(b).keys * problem.heads_kv);
  }
  return element * rows * static_cast<double>(problem.dim_qk + problem.dim_v);
}

// Bytes moved between memory and a fast memory of M bytes, in the model of Dao et al. 2022: Theorem 2 states
// Theta(N d + N^2) accesses for standard attention and Theta(N^2 d^2 / M) for FlashAttention. Constants are those of the
// algorithms as written there (Algorithms 0 and 1; 3 and 4 for the backward pass).
struct IoModel {
  double standard = 0;
  double flash = 0;
};

IoModel io_model(const Problem& problem, const PlanFacts& facts, Pass pass, std::int64_t cache_bytes) {
  const auto element = static_cast<double>(dtype_bytes(problem.dtype));
  const double dims = static_cast<double>(problem.dim_qk + problem.dim_v);
  const double linear_q = static_cast<double>(problem.total_q() * problem.heads_q) * dims;
  const double linear_k = static_cast<double>(problem.total_k() * problem.heads_kv) * dims;
  const double passes = pass == Pass::forward ? 1 : 2;
  double scores = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    scores += static_cast<double>(span.queries) * static_cast<double>(span.keys);
  }
  scores *= static_cast<double>(problem.heads_q);
  const auto pairs = static_cast<double>(facts.tiles.pairs);
  const double rows_in_cache = std::max(1.0, std::floor(static_cast<double>(cache_bytes) / (2 * dims * element)));
  IoModel model;
  model.standard = element * (passes * (linear_q + linear_k) + 4 * passes * scores);
  model.flash = element * (passes * (linear_q + linear_k) + passes * pairs / rows_in_cache * dims);
  return model;
}

void write_work(std::ostream& out, const Problem& problem, const PlanFacts& facts) {
  const auto& tiles = facts.tiles;
  const std::int64_t all = tiles.full + tiles.partial + tiles.skipped;
  out << "tiles      " << facts.tile_q << " queries x " << facts.tile_k << " keys: " << tiles.full + tiles.partial
      << " visited of " << all << " (" << tiles.full << " full, " << tiles.partial << " partial, " << tiles.skipped
      << " skipped)\n";
  out << "pairs      " << tiles.pairs << " (query, key, head) triples attend\n";
  out << "FLOPs      " << flops_text(facts.flops_of_pairs) << " for the pairs that attend, " << flops_text(facts.flops)
      << " in the visited tiles\n";
  double score_bytes = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    score_bytes += static_cast<double>(span.queries) * static_cast<double>(span.keys);
  }
  score_bytes *= static_cast<double>(problem.heads_q * dtype_bytes(problem.dtype));
  out << "workspace  " << bytes_text(static_cast<double>(facts.workspace_bytes)) << " (" << facts.workspace_bytes
      << " bytes), " << (facts.impl == "standard" ? "quadratic" : "linear")
      << " in the sequence length; the score matrix alone would take " << bytes_text(score_bytes) << "\n";
}

void write_impl(std::ostream& out, const Device& device, const PlanFacts& facts) {
  out << "impl       " << facts.impl << " (";
  if (device.kind == DeviceKind::cuda) {
    out << "cuda:" << device.index << ")\n";
    return;
  }
  out << facts.isa << (facts.isa.empty() ? "" : ", ") << facts.threads << (facts.threads == 1 ? " thread" : " threads")
      << ")\n";
}

std::string decimal(double value) {
  std::ostringstream text;
  text.precision(2);
  text << std::fixed << value;
  return text.str();
}

void write_kernel(std::ostream& out, const KernelFacts& kernel) {
  out << "kernel     " << kernel.name << ": ";
  if (kernel.tile_q > 0) {
    out << "tiles of " << kernel.tile_q << " queries x " << kernel.tile_k << " keys in " << kernel.stages
        << " stages, ";
  }
  out << kernel.blocks << " blocks of " << kernel.threads << " threads"
      << (kernel.waves > 0 ? ", " + decimal(kernel.waves) + " waves; " : "; ") << kernel.registers
      << " registers a thread, " << (kernel.spill_bytes == 0 ? "no" : std::to_string(kernel.spill_bytes) + " bytes of")
      << " spills, " << (kernel.shared_bytes == 0 ? "no" : bytes_text(static_cast<double>(kernel.shared_bytes)) + " of")
      << " shared memory a block" << (kernel.compiled ? "; compiled at run time" : "") << "\n";
}

// On the CPU: the pairs that attend, at the share of the FMA peak that long sequences reach.
void write_cpu_prediction(std::ostream& out, const PlanFacts& facts, double flops_per_second) {
  const double rate = flops_per_second * facts.threads * facts.expected_share;
  out << "predicted  " << time_text(facts.flops_of_pairs / rate) << " at " << percent(facts.expected_share) << " of "
      << flops_text(flops_per_second) << "/s a thread\n";
}

// Of the kernel with the most tiles: the last wave takes as long as a full one.
double whole_waves(const PlanFacts& facts) {
  double factor = 1;
  for (const KernelFacts& kernel : facts.kernels) {
    if (kernel.tile_q > 0 && kernel.waves > 0) {
      factor = std::max(factor, std::ceil(kernel.waves) / kernel.waves);
    }
  }
  return factor;
}

// On a GPU: the visited tiles, in whole waves, at the share of the matrix rate that long dense sequences of head dim 128
// reach.
void write_gpu_prediction(std::ostream& out, const internal::Explained& plan, const MachineRates& rates) {
  const PlanFacts& facts = plan.facts;
  const double flops_per_second = rates.flops_per_second;
  const double expected = plan.pass == Pass::forward ? 0.85 : 0.7;
  const double waves = whole_waves(facts);
  const double seconds = facts.flops / (flops_per_second * expected) * waves;
  const double share = seconds > 0 ? facts.flops_of_pairs / seconds / flops_per_second : 0;
  const double bytes = linear_bytes(plan.problem) * (plan.pass == Pass::forward ? 1 : 2);
  constexpr double kExpectedOfCopy = 0.9;
  const double reading = rates.bytes_per_second > 0 ? bytes / (rates.bytes_per_second * kExpectedOfCopy) : 0;
  if (reading > seconds) {
    out << "predicted  " << time_text(reading) << ", bound by memory: " << bytes_text(bytes)
        << " of inputs and outputs at " << percent(kExpectedOfCopy) << " of the measured copy rate, "
        << bytes_text(rates.bytes_per_second) << "/s\n";
    return;
  }
  out << "predicted  " << time_text(seconds) << ", " << percent(share) << " of the measured matrix rate, "
      << flops_text(flops_per_second) << "/s: visited tiles at " << percent(expected) << ", times " << decimal(waves)
      << " for whole waves\n";
}

}  // namespace

namespace internal {

std::string explain(const Explained& plan, const std::optional<MachineRates>& rates) {
  constexpr std::int64_t kDefaultCacheBytes = std::int64_t{1} << 20;
  const PlanFacts& facts = plan.facts;
  std::ostringstream out;
  out << "problem    " << plan.problem.describe() << ", " << pass_name(plan.pass) << "\n";
  write_impl(out, plan.device, facts);
  for (const std::string& reason : facts.refusals) {
    out << "refused    " << reason << "\n";
  }
  write_work(out, plan.problem, facts);
  for (const KernelFacts& kernel : facts.kernels) {
    write_kernel(out, kernel);
  }
  const std::int64_t cache = rates && rates->cache_bytes > 0 ? rates->cache_bytes : kDefaultCacheBytes;
  const IoModel model = io_model(plan.problem, facts, plan.pass, cache);
  out << "bytes      " << bytes_text(model.flash) << " against " << bytes_text(model.standard)
      << " of standard attention (IO model of FlashAttention, Theorem 2, fast memory "
      << bytes_text(static_cast<double>(cache)) << ")\n";
  if (rates && rates->flops_per_second > 0) {
    if (plan.device.kind == DeviceKind::cuda) {
      write_gpu_prediction(out, plan, *rates);
    } else {
      write_cpu_prediction(out, facts, rates->flops_per_second);
    }
  }
  return out.str();
}

}  // namespace internal

std::string Plan::explain(const std::optional<MachineRates>& rates) const {
  return internal::explain({problem_, pass_, device_, facts_}, rates);
}

}  // namespace tessera
