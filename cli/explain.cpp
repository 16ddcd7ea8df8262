// tessera explain: how a problem would be computed, and what its mask looks like.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/flag_values.h"
#include "cli/problem_flags.h"
#include "cli/terminal.h"
#include "tessera/plan.h"

namespace tessera::cli {

namespace {

// The largest drawing, in cells.
constexpr std::int64_t kMostRows = 64;
constexpr std::int64_t kMostColumns = 100;

bool fits(const TileSchedule& schedule) {
  return schedule.query_tiles() <= kMostRows && schedule.key_tiles() <= kMostColumns;
}

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

// The mask of the first sequence that has any: by pairs where they fit on a page, by tiles where those do.
void print_mask(const Problem& problem, const PlanFacts& facts) {
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const TileSchedule pairs = problem.schedule(b, 1, 1);
    if (pairs.queries() == 0 || pairs.keys() == 0) {
      continue;
    }
    const bool small = fits(pairs);
    const TileSchedule schedule = small ? pairs : problem.schedule(b, facts.tile_q, facts.tile_k);
    if (!fits(schedule)) {
      fmt::print("\nThe mask has {} x {} tiles: too many to draw (at most {} x {})\n", schedule.query_tiles(),
                 schedule.key_tiles(), kMostRows, kMostColumns);
      return;
    }
    const char* legend = unicode() ? "█ full, ▒ partial, · skipped" : "# full, + partial, . skipped";
    fmt::print("\n{} (queries down, keys across{})\n{}",
               bold(fmt::format("Mask of sequence {} by {}", b, small ? "pairs" : "tiles")),
               small ? std::string() : fmt::format("; {}", legend), drawing(schedule));
    return;
  }
}

struct ExplainFlags {
  ProblemFlags problem;
  PlanOptions plan;
  Pass pass = Pass::forward;
  bool draw = true;
};

int explain(const ExplainFlags& flags) {
  const Problem problem = flags.problem.problem();
  const Plan plan = Plan::make(problem, flags.pass, flags.plan);
  const MachineRates rates{measure_peak_flops(plan.facts().isa), cpu_info().l2_bytes};
  fmt::print("{}", plan.explain(rates));
  if (flags.draw && plan.facts().tile_q > 0 && plan.facts().tile_k > 0) {
    print_mask(problem, plan.facts());
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
  add_plan_flags(*app, flags->plan);
  add_word(*app, "--pass", "the pass to plan [forward]", {"forward", "backward"},
           [flags](const std::string& word) { flags->pass = word == "forward" ? Pass::forward : Pass::backward; });
  app->add_flag_callback("--no-drawing", [flags] { flags->draw = false; }, "leave the drawing of the mask out");
  app->footer("Example:\n  tessera explain --seq 4096 --mask causal --window 1024,0");
  return {app, [flags] { return explain(*flags); }};
}

}  // namespace tessera::cli
