#include "tessera/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "support/expect_error.h"
#include "support/targets.h"

namespace tessera {
namespace {

using test::expect_error;
using test::expect_invalid;

Problem plain_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 100;
  problem.seq_k = 130;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = 16;
  problem.dim_v = 24;
  return problem;
}

PlanOptions with_impl(const std::string& impl) {
  PlanOptions options;
  options.impl = impl;
  return options;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Implementations, EveryRowIsCompleteAndTheReferenceIsAvailable) {
  std::set<std::string> names;
  bool reference = false;
  for (const ImplInfo& info : implementations()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " is listed twice";
    EXPECT_FALSE(info.summary.empty()) << info.name;
    EXPECT_EQ(info.reason.empty(), info.available) << info.name;
    reference = reference || (info.name == "reference" && info.available);
  }
  EXPECT_TRUE(reference);
  EXPECT_TRUE(names.contains("flash"));
  EXPECT_TRUE(names.contains("standard"));
  EXPECT_EQ(implementations().front().name, "decode") << "the fastest that accepts comes first";
}

TEST(Plan, TakesFlashByDefault) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Plan plan = Plan::make(plain_problem(), pass);
    EXPECT_EQ(plan.facts().impl, "flash");
    EXPECT_EQ(plan.pass(), pass);
    EXPECT_EQ(plan.problem(), plain_problem());
    EXPECT_EQ(plan.workspace_bytes(), plan.facts().workspace_bytes);
  }
}

TEST(Plan, ForcedImplIsTheOneThatIsPlanned) {
  for (const std::string& impl : test::cpu_impls()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      EXPECT_EQ(Plan::make(plain_problem(), pass, with_impl(impl)).facts().impl, impl);
    }
  }
}

TEST(Plan, UnknownImplIsRefusedWithTheKnownOnes) {
  expect_invalid({"impl", "flesh", "flash", "reference", "standard"},
                 [] { Plan::make(plain_problem(), Pass::forward, with_impl("flesh")); });
}

TEST(Plan, ProductsHaveNames) {
  for (const Float32Products products : {Float32Products::exact, Float32Products::tf32}) {
    EXPECT_EQ(float32_products_from_name(float32_products_name(products)), products);
  }
  expect_invalid({"float32_products: half", "exact, tf32"}, [] { float32_products_from_name("half"); });
}

TEST(Plan, TheEnvironmentChoosesAnImplThatTheCallerLeavesOpen) {
  setenv("TESSERA_IMPL", "reference", 1);
  EXPECT_EQ(Plan::make(plain_problem(), Pass::forward).facts().impl, "reference");
  EXPECT_EQ(Plan::make(plain_problem(), Pass::forward, with_impl("flash")).facts().impl, "flash");
  setenv("TESSERA_IMPL", "flesh", 1);
  expect_invalid({"impl", "flesh"}, [] { Plan::make(plain_problem(), Pass::forward); });
  unsetenv("TESSERA_IMPL");
}

TEST(Plan, UnknownIsaIsRefusedWithTheKnownOnes) {
  PlanOptions options;
  options.isa = "mmx";
  expect_invalid({"isa", "mmx", cpu_info().isas.front()}, [&] { Plan::make(plain_problem(), Pass::forward, options); });
}

TEST(Plan, ThreadsOutOfRangeAreRefused) {
  PlanOptions options;
  options.threads = -1;
  expect_invalid({"threads", "-1"}, [&] { Plan::make(plain_problem(), Pass::forward, options); });
  options.threads = 100'000;
  expect_invalid({"threads", "100000", "4096"}, [&] { Plan::make(plain_problem(), Pass::forward, options); });
}

// float64, which only the reference takes: where there is a GPU, the dtype is the reason.
TEST(Plan, CudaDeviceIsUnsupportedAndEveryImplSaysWhy) {
  PlanOptions options;
  options.device = {DeviceKind::cuda, 0};
  Problem problem = plain_problem();
  problem.dtype = DType::float64;
  // A build without OpenBLAS refuses the standard Impl for that.
  expect_error(ErrorCode::unsupported, {"sm90: ", "sm80: ", "flash: ", "standard: ", "reference: device"},
               [&] { Plan::make(problem, Pass::forward, options); });
  options.impl = "flash";
  expect_error(ErrorCode::unsupported, {"flash: device: it runs on the CPU"},
               [&] { Plan::make(plain_problem(), Pass::forward, options); });
}

TEST(Plan, WithoutAGpuThePlanSaysWhyThereIsNone) {
  const CudaInfo cuda = cuda_info();
  if (cuda.unavailable.empty()) GTEST_SKIP() << "there is a GPU";
  EXPECT_TRUE(cuda.devices.empty());
  PlanOptions options;
  options.device = {DeviceKind::cuda, 0};
  Problem problem = plain_problem();
  problem.dtype = DType::bfloat16;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    expect_error(ErrorCode::unsupported, {"sm90: " + cuda.unavailable}, [&] { Plan::make(problem, pass, options); });
  }
}

TEST(Plan, OnTheCpuNoGpuImplIsConsideredUnlessItIsNamed) {
  EXPECT_TRUE(Plan::make(plain_problem(), Pass::forward).facts().refusals.empty());
  expect_error(ErrorCode::unsupported, {"sm90: "},
               [] { Plan::make(plain_problem(), Pass::forward, with_impl("sm90")); });
}

// float64 is for the oracle: the others refuse by name of the field, and the plan says so.
TEST(Plan, DoublePrecisionFallsToTheReference) {
  Problem problem = plain_problem();
  problem.dtype = DType::float64;
  const Plan plan = Plan::make(problem, Pass::forward);
  EXPECT_EQ(plan.facts().impl, "reference");
  ASSERT_FALSE(plan.facts().refusals.empty());
  for (const std::string& refusal : plan.facts().refusals) {
    EXPECT_TRUE(contains(refusal, "dtype") || contains(refusal, "OpenBLAS")) << refusal;
    EXPECT_TRUE(contains(plan.explain(), refusal)) << plan.explain();
  }
  expect_error(ErrorCode::unsupported, {"flash", "dtype"},
               [&] { Plan::make(problem, Pass::forward, with_impl("flash")); });
}

TEST(Plan, ForcedThreadsAreReported) {
  PlanOptions options;
  for (const int threads : {1, 2, 3, 7}) {
    options.threads = threads;
    EXPECT_EQ(Plan::make(plain_problem(), Pass::forward, options).facts().threads, threads);
  }
}

TEST(Plan, EveryListedIsaCanBeForced) {
  const CpuInfo info = cpu_info();
  ASSERT_FALSE(info.isas.empty());
  EXPECT_TRUE(std::ranges::count(info.isas, info.selected_isa) == 1) << info.selected_isa;
  EXPECT_GE(info.threads, 1);
  for (const std::string& isa : info.isas) {
    PlanOptions options = with_impl("flash");
    options.isa = isa;
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      EXPECT_EQ(Plan::make(plain_problem(), pass, options).facts().isa, isa);
    }
  }
}

// Pairs by hand: 100 queries on 130 keys, bottom-right.
TEST(PlanFacts, CountsPairsAndFlops) {
  Problem problem = plain_problem();
  const std::int64_t rows = problem.batch * problem.heads_q;
  const Plan dense = Plan::make(problem, Pass::forward);
  EXPECT_EQ(dense.facts().tiles.pairs, rows * 100 * 130);
  EXPECT_EQ(dense.facts().tiles.skipped, 0);
  EXPECT_DOUBLE_EQ(dense.facts().flops_of_pairs, 2.0 * (16 + 24) * static_cast<double>(rows) * 100 * 130);
  problem.mask = Mask::causal();
  const std::int64_t causal_pairs = 100 * 31 + 99 * 100 / 2;
  const Plan causal = Plan::make(problem, Pass::backward);
  EXPECT_EQ(causal.facts().tiles.pairs, rows * causal_pairs);
  EXPECT_DOUBLE_EQ(causal.facts().flops_of_pairs, 2.0 * (3 * 16 + 2 * 24) * static_cast<double>(rows * causal_pairs));
  EXPECT_GE(causal.facts().flops, causal.facts().flops_of_pairs);
}

TEST(PlanFacts, TilesAreThoseOfTheSchedule) {
  Problem problem = plain_problem();
  problem.seq_q = 700;
  problem.seq_k = 900;
  problem.mask = Mask::window(64, 32);
  problem.key_lengths = {900, 333};
  for (const std::string& impl : test::cpu_impls()) {
    const PlanFacts facts = Plan::make(problem, Pass::forward, with_impl(impl)).facts();
    ASSERT_GE(facts.tile_q, 1) << impl;
    ASSERT_GE(facts.tile_k, 1) << impl;
    TileSchedule::Counts expected;
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const TileSchedule::Counts counts = problem.schedule(b, facts.tile_q, facts.tile_k).count();
      expected.full += counts.full * problem.heads_q;
      expected.partial += counts.partial * problem.heads_q;
      expected.skipped += counts.skipped * problem.heads_q;
      expected.pairs += counts.pairs * problem.heads_q;
    }
    EXPECT_EQ(facts.tiles.full, expected.full) << impl;
    EXPECT_EQ(facts.tiles.partial, expected.partial) << impl;
    EXPECT_EQ(facts.tiles.skipped, expected.skipped) << impl;
    EXPECT_EQ(facts.tiles.pairs, expected.pairs) << impl;
  }
}

// The claim of the whole library: the workspace is linear in the sequence length for flash, quadratic for standard.
TEST(PlanFacts, WorkspaceGrowth) {
  PlanOptions options = with_impl("flash");
  options.threads = 2;
  const auto bytes = [&](const PlanOptions& plan_options, std::int64_t length, Pass pass) {
    Problem problem = plain_problem();
    problem.seq_q = problem.seq_k = length;
    return static_cast<double>(Plan::make(problem, pass, plan_options).workspace_bytes());
  };
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const double short_bytes = bytes(options, 16384, pass);
    EXPECT_LE(bytes(options, 65536, pass), 4.2 * short_bytes) << pass_name(pass);
  }
  const std::vector<std::string> impls = test::cpu_impls();
  if (std::ranges::count(impls, "standard") == 1) {
    options.impl = "standard";
    EXPECT_GE(bytes(options, 65536, Pass::forward), 10 * bytes(options, 16384, Pass::forward));
    EXPECT_TRUE(contains(Plan::make(plain_problem(), Pass::forward, options).explain(), "quadratic"));
  }
}

TEST(PlanFacts, PlanningIsAPureFunction) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Plan first = Plan::make(plain_problem(), pass);
    const Plan second = Plan::make(plain_problem(), pass);
    EXPECT_EQ(first.explain(), second.explain());
    EXPECT_EQ(first.workspace_bytes(), second.workspace_bytes());
  }
}

TEST(Explain, NamesImplTilesFlopsMemoryAndPredictedTime) {
  Problem problem = plain_problem();
  problem.mask = Mask::causal();
  const Plan plan = Plan::make(problem, Pass::forward);
  const PlanFacts& facts = plan.facts();
  const std::string text = plan.explain();
  for (const std::string& part :
       {problem.describe(), facts.impl, facts.isa, std::to_string(facts.tile_q), std::to_string(facts.tile_k),
        std::to_string(facts.tiles.skipped), std::to_string(facts.tiles.pairs), std::to_string(facts.workspace_bytes),
        std::string("Theorem 2"), std::string("linear")}) {
    EXPECT_TRUE(contains(text, part)) << "no '" << part << "' in:\n" << text;
  }
  EXPECT_FALSE(contains(text, "predicted"));
  EXPECT_TRUE(contains(plan.explain(MachineRates{1e11, 1 << 19}), "predicted"));
  EXPECT_TRUE(contains(plan.explain(MachineRates{1e11, 1 << 19}), "512 KiB"));
}

// An empty problem has a plan, and nothing in it.
TEST(PlanFacts, EmptyProblems) {
  for (std::int64_t Problem::* extent : {&Problem::batch, &Problem::seq_q, &Problem::seq_k}) {
    Problem problem = plain_problem();
    problem.*extent = 0;
    for (const std::string& impl : test::cpu_impls()) {
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        const Plan plan = Plan::make(problem, pass, with_impl(impl));
        EXPECT_EQ(plan.facts().tiles.pairs, 0);
        EXPECT_EQ(plan.facts().flops, 0);
        EXPECT_FALSE(plan.explain(MachineRates{1e11, 1 << 20}).empty());
      }
    }
  }
}

TEST(Peak, IsPositiveForEveryIsa) {
  for (const std::string& isa : cpu_info().isas) EXPECT_GT(measure_peak_flops(isa), 1e8) << isa;
  expect_invalid({"isa", "mmx"}, [] { measure_peak_flops("mmx"); });
}

}  // namespace
}  // namespace tessera
