// Random problems over the whole feature space, on random layouts, schedules and numbers of ranks.
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "cli/compare.h"
#include "cli/random_problem.h"
#include "cli/rank_tensors.h"

namespace tessera {
namespace {

constexpr std::uint64_t kSeed = 20;
constexpr std::uint64_t kProblems = 80;

TEST(RandomRing, MeetsTheBoundsOfOneDevice) {
  int checked = 0;
  for (std::uint64_t index = 0; index < kProblems; ++index) {
    cli::RandomProblem random = cli::random_problem(kSeed, index);
    const Problem& drawn = random.problem;
    if (drawn.ragged() || drawn.dtype == DType::float64) continue;
    constexpr std::array kLayouts{SequenceLayout::Kind::contiguous, SequenceLayout::Kind::zigzag,
                                  SequenceLayout::Kind::striped};
    constexpr std::array kSchedules{RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring};
    DistributedOptions options;
    options.layout = kLayouts[index % kLayouts.size()];
    options.schedule = kSchedules[index / kLayouts.size() % kSchedules.size()];
    options.plan.threads = 1;
    const int ranks = 2 + static_cast<int>(index % 4);
    options.links.ranks_per_node = ranks % 2 == 0 ? 2 : 1;
    SCOPED_TRACE(std::to_string(index) + ": " + random.problem.describe() + " over " + std::to_string(ranks) + ", " +
                 std::string(layout_name(options.layout)) + ", " + std::string(schedule_name(options.schedule)));
    const cli::ProblemTensors tensors(random.problem, random.tensors);
    cli::run_on_local_ranks(tensors, Pass::forward, ranks, options);
    cli::run_on_local_ranks(tensors, Pass::backward, ranks, options);
    cli::CheckOptions check;
    check.tensors = random.tensors;
    check.plan.threads = 1;
    for (const cli::OutputCheck& output : cli::check_outputs(tensors, check).outputs) {
      EXPECT_TRUE(output.ok()) << output.output << ": " << output.error << " of " << output.allowed << " "
                               << output.mismatch;
    }
    ++checked;
  }
  EXPECT_GT(checked, static_cast<int>(kProblems) / 3);
}

}  // namespace
}  // namespace tessera
