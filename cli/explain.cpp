// tessera explain: how a problem would be computed, and what its mask looks like.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/flag_values.h"
#include "cli/problem_flags.h"
#include "cli/terminal.h"
#include "core/fail.h"
#include "cuda/device.h"
#include "cuda/memory.h"
#include "tessera/plan.h"

namespace tessera::cli {

namespace {

// The largest drawing: square on a terminal, whose characters are twice as high as wide.
constexpr std::int64_t kMostRows = 32;
constexpr std::int64_t kMostColumns = 64;

std::string drawing(const TileSchedule& schedule) {
  const char* full = unicode() ? "█" : "#";
  const char* partial = unicode() ? "▒" : "+";
  const char* skipped = unicode() ? "·" : ".";
  std::string text;
  for (std::int64_t row = 0; row < schedule.query_tiles(); ++row) {
    text += "  ";
    for (std::int64_t column = 0; column < schedule.key_tiles(); ++column) {
      const auto kind = schedule.visit(row, column);
      text += !kind ? skipped : *kind == TileKind::full ? full : partial;
    }
    text += '\n';
  }
  return text;
}

// The mask of the first sequence that has any, in cells of as many pairs as make it fit.
void print_mask(const Problem& problem) {
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    if (span.queries == 0 || span.keys == 0) {
      continue;
    }
    const std::int64_t cell_q = internal::ceil_div(span.queries, kMostRows);
    const std::int64_t cell_k = internal::ceil_div(span.keys, kMostColumns);
    const bool pairs = cell_q == 1 && cell_k == 1;
    fmt::print("\n{}: queries down, keys across; {} full{}, {} skipped; a cell is {}\n{}",
               bold(fmt::format("Mask of sequence {}", b)), unicode() ? "█" : "#",
               pairs ? "" : (unicode() ? ", ▒ partial" : ", + partial"), unicode() ? "·" : ".",
               pairs ? "one pair" : fmt::format("{} x {} pairs", cell_q, cell_k),
               drawing(problem.schedule(b, cell_q, cell_k)));
    return;
  }
}

struct ExplainFlags {
  ProblemFlags problem;
  PlanOptions plan;
  Pass pass = Pass::forward;
  bool draw = true;
};

MachineRates rates_of(const Device& device, const PlanFacts& facts) {
  if (device.kind == DeviceKind::cuda) {
    return {internal::measure_matrix_rate(device.index), internal::cuda_device(device.index).shared_bytes,
            internal::measure_copy_rate(device.index)};
  }
  return {measure_peak_flops(facts.isa), cpu_info().l2_bytes};
}

int explain(const ExplainFlags& flags) {
  const Problem problem = flags.problem.problem();
  if (flags.plan.device.kind == DeviceKind::cuda) {
    internal::cuda_device(flags.plan.device.index);
  }
  const Plan plan = Plan::make(problem, flags.pass, flags.plan);
  fmt::print("{}", plan.explain(rates_of(flags.plan.device, plan.facts())));
  if (flags.draw) {
    print_mask(lower_mask_function(problem));
  }
  return 0;
}

}  // namespace

Command add_explain(::CLI::App& root) {
  ::CLI::App* app =
      root.add_subcommand("explain", "The plan for a problem: Impl, tiles, FLOPs, memory, predicted time");
  auto flags = std::make_shared<ExplainFlags>();
  flags->problem.add_shape(*app);
  flags->problem.add_options(*app);
  add_plan_flags(*app, flags->plan, &flags->problem);
  add_word(*app, "--pass", "the pass to plan [forward]", {"forward", "backward"},
           [flags](const std::string& word) { flags->pass = word == "forward" ? Pass::forward : Pass::backward; });
  app->add_flag_callback("--no-drawing", [flags] { flags->draw = false; }, "leave the drawing of the mask out");
  app->footer(
      "Examples:\n"
      "  tessera explain --seq 4096 --mask causal --window 1024,0\n"
      "  tessera explain --device cuda --seq 8192 --dim 128 --mask causal --pass backward");
  return {app, [flags] { return explain(*flags); }};
}

}  // namespace tessera::cli
