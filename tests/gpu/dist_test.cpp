// Attention over ranks on GPUs. With one GPU several ranks share it, which is slow and just as right; with more they spread.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <thread>

#include "cli/rank_tensors.h"
#include "gpu/gpu_test.h"
#include "support/expect_error.h"
#include "tessera/attention.h"
#include "tessera/distributed.h"
#include "tessera/nccl.h"

namespace tessera::test {
namespace {

using namespace std::chrono_literals;
using cli::ProblemTensors;
using Kind = SequenceLayout::Kind;

std::vector<Device> devices(int ranks) {
  const auto count = static_cast<int>(cuda_info().devices.size());
  std::vector<Device> all;
  for (int rank = 0; rank < ranks; ++rank) all.push_back({DeviceKind::cuda, rank % count});
  return all;
}

DistributedOptions with(RingSchedule schedule, Kind layout, int ranks_per_node = 0) {
  DistributedOptions options;
  options.schedule = schedule;
  options.layout = layout;
  options.links.ranks_per_node = ranks_per_node;
  return options;
}

cli::TensorOptions aligned() {
  cli::TensorOptions options;
  options.aligned16 = true;
  options.strides.reset();
  options.dlse = true;
  return options;
}

Outputs both_passes(ProblemTensors& tensors, const std::function<void(Pass)>& run) {
  tensors.poison_outputs();
  Outputs all;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    run(pass);
    for (NamedValues& output : outputs_of(tensors, pass)) all.push_back(std::move(output));
  }
  return all;
}

Outputs over_ranks(ProblemTensors& tensors, int ranks, const DistributedOptions& options) {
  return both_passes(tensors, [&](Pass pass) { cli::run_on_local_ranks(tensors, pass, devices(ranks), options); });
}

PlanOptions any_impl() {
  PlanOptions options;
  options.device = kGpu;
  return options;
}

Outputs alone(ProblemTensors& tensors) {
  return both_passes(tensors,
                     [&](Pass pass) { cli::run_plan(Plan::make(tensors.problem(), pass, any_impl()), kGpu, tensors); });
}

Outputs of_the_oracle(const ProblemTensors& tensors) {
  ProblemTensors wide = tensors.widened();
  PlanOptions oracle;
  oracle.impl = "reference";
  return run_both(wide, oracle);
}

Segments documents(std::int64_t tokens) {
  Segments segments;
  for (std::int64_t i = 0; i < tokens; ++i) segments.query.push_back(static_cast<std::int32_t>(i * 5 / tokens));
  segments.key = segments.query;
  return segments;
}

// Throws what a rank's plan throws, unless that is for want of a kernel.
bool lacks_kernel_over_ranks(const std::function<void()>& run) {
  try {
    run();
    return false;
  } catch (const Error& error) {
    if (kernel_missing(error.what())) return true;
    throw;
  }
}

struct Case {
  std::string name;
  Problem problem;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, Problem problem, const auto& change) {
    problem.heads_kv = 2;
    change(problem);
    all.push_back({std::move(name), std::move(problem)});
  };
  add("dense", gpu_problem(333, 333, 4, 128), [](Problem& p) { p.heads_kv = 4; });
  add("causal", gpu_problem(517, 517, 4, 128, Mask::causal()), [](Problem& p) { p.batch = 2; });
  add("causal_one_key_head", gpu_problem(260, 260, 2, 64, Mask::causal()), [](Problem& p) { p.heads_kv = 1; });
  add("causal_grouped_heads", gpu_problem(389, 389, 32, 128, Mask::causal()), [](Problem& p) { p.heads_kv = 8; });
  add("causal_more_keys", gpu_problem(200, 411, 4, 64, Mask::causal()), [](Problem&) {});
  add("window", gpu_problem(400, 400, 4, 128, Mask::window(70, 5)), [](Problem&) {});
  add("key_lengths", gpu_problem(300, 300, 4, 128, Mask::causal()), [](Problem& p) {
    p.batch = 2;
    p.key_lengths = {300, 77};
  });
  add("float16", gpu_problem(300, 300, 4, 128, Mask::causal()), [](Problem& p) { p.dtype = DType::float16; });
  add("uneven_dims", gpu_problem(300, 300, 4, 72, Mask::causal()), [](Problem& p) { p.dim_v = 40; });
  add("documents", gpu_problem(300, 300, 4, 128, Mask::causal() & Mask::segments(documents(300))), [](Problem&) {});
  add("blocks", gpu_problem(768, 768, 4, 128, Mask::blocks(block_patterns::random({768, 768, 64, 64}, 0.3, 1))),
      [](Problem& p) { p.batch = 2; });
  add("causal_blocks_by_head", gpu_problem(500, 500, 4, 64), [](Problem& p) {
    std::vector<BlockMask> heads;
    for (std::uint64_t head = 0; head < 4; ++head) {
      heads.push_back(block_patterns::random({500, 500, 48, 80}, 0.4, head));
    }
    p.mask = Mask::causal() & Mask::blocks(BlockMask::over_heads(heads));
  });
  add("causal_blocks_grouped_heads", gpu_problem(448, 448, 32, 128), [](Problem& p) {
    p.heads_kv = 8;
    p.mask = Mask::causal() & Mask::blocks(block_patterns::random({448, 448, 64, 64}, 0.5, 3));
  });
  add("alibi_softcap", gpu_problem(300, 300, 4, 128, Mask::causal()), [](Problem& p) {
    p.alibi = true;
    p.softcap = 5;
  });
  add("dropout", gpu_problem(300, 300, 4, 128, Mask::causal()),
      [](Problem& p) { p.dropout = {0.2, 11, 0, 0, 0, 0, 1, 1}; });
  add("bias_of_keys", gpu_problem(200, 200, 4, 128, Mask::causal()),
      [](Problem& p) { p.bias_shape = {{1, 4, 1, 200}}; });
  add("bias_of_every_pair", gpu_problem(150, 170, 4, 64), [](Problem& p) {
    p.batch = 2;
    p.bias_shape = {{2, 4, 150, 170}};
  });
  add("sinks", gpu_problem(300, 300, 4, 128, Mask::window(40, 0)), [](Problem& p) { p.sinks = true; });
  add("float32", gpu_problem(200, 200, 4, 64, Mask::causal()), [](Problem& p) { p.dtype = DType::float32; });
  add("float32_output", gpu_problem(200, 200, 4, 128, Mask::causal()),
      [](Problem& p) { p.output_dtype = DType::float32; });
  add("rows_that_see_nothing", gpu_problem(300, 300, 4, 128, Mask::causal(Alignment::at(-90))), [](Problem&) {});
  add("fewer_tokens_than_ranks", gpu_problem(3, 3, 4, 128, Mask::causal()), [](Problem&) {});
  return all;
}

class GpuRing : public GpuTest, public testing::WithParamInterface<Case> {};

TEST_P(GpuRing, EqualsOneDevice) {
  const Problem& problem = GetParam().problem;
  ProblemTensors tensors(problem, aligned());
  const Outputs expected = of_the_oracle(tensors);
  Outputs one;
  if (lacks_kernel_over_ranks([&] { one = alone(tensors); })) GTEST_SKIP() << "this build has no kernel for it";
  bool skipped = false;
  const auto check = [&](int ranks, const DistributedOptions& options) {
    SCOPED_TRACE(std::string(layout_name(options.layout)) + " " + std::string(schedule_name(options.schedule)) +
                 " over " + std::to_string(ranks));
    Outputs found;
    if (lacks_kernel_over_ranks([&] { found = over_ranks(tensors, ranks, options); })) {
      skipped = true;
      return;
    }
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t n = 0; n < found.size(); ++n) {
      const double error = relative_error(one[n].values, expected[n].values);
      EXPECT_LE(relative_error(found[n].values, expected[n].values), 2.5 * error + 2e-3) << found[n].name;
    }
  };
  for (const Kind layout : {Kind::contiguous, Kind::zigzag, Kind::striped}) {
    for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
      for (const int ranks : {1, 2, 3, 4, 5}) check(ranks, with(schedule, layout));
    }
    check(4, with(RingSchedule::double_ring, layout, 2));
    check(6, with(RingSchedule::double_ring, layout, 2));
  }
  if (skipped) GTEST_SKIP() << "this build lacks kernels for some of the parts";
}

INSTANTIATE_TEST_SUITE_P(Features, GpuRing, testing::ValuesIn(cases()), [](const auto& row) { return row.param.name; });

class GpuRanks : public GpuTest {};

TEST_F(GpuRanks, ErrorDoesNotGrowAndRunsAreBitwiseEqual) {
  ProblemTensors tensors(gpu_problem(1024, 1024, 4, 128, Mask::causal()), {});
  const Outputs expected = of_the_oracle(tensors);
  const Outputs one = alone(tensors);
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
    for (const int ranks : {2, 8}) {
      const DistributedOptions options = with(schedule, Kind::zigzag);
      const Outputs found = over_ranks(tensors, ranks, options);
      for (std::size_t n = 0; n < found.size(); ++n) {
        const double error = relative_error(one[n].values, expected[n].values);
        EXPECT_LE(relative_error(found[n].values, expected[n].values), 1.6 * error + 1e-6)
            << found[n].name << " over " << ranks;
      }
      EXPECT_TRUE(bitwise_equal(found, over_ranks(tensors, ranks, options))) << "over " << ranks;
    }
  }
}

// At lengths where every rank has many tiles of each kernel. Both sides round to 16 bits.
TEST_F(GpuRanks, LongSequencesEqualOneDevice) {
  Problem problem = gpu_problem(2048, 2048, 32, 128, Mask::causal());
  problem.heads_kv = 8;
  ProblemTensors tensors(problem, {});
  const Outputs one = alone(tensors);
  for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst, RingSchedule::double_ring}) {
    const int ranks_per_node = schedule == RingSchedule::double_ring ? 2 : 0;
    const Outputs found = over_ranks(tensors, 4, with(schedule, Kind::zigzag, ranks_per_node));
    for (std::size_t n = 0; n < found.size(); ++n) {
      EXPECT_LE(relative_error(found[n].values, one[n].values), 5e-3)
          << found[n].name << ", " << schedule_name(schedule);
    }
  }
}

TEST_F(GpuRanks, SendTheBytesThatTheFactsSay) {
  Problem problem = gpu_problem(512, 512, 4, 128, Mask::causal());
  for (const std::int64_t heads_kv : {4, 1}) {
    problem.heads_kv = heads_kv;
    const ProblemTensors tensors(problem, {});
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      for (const RingSchedule schedule : {RingSchedule::ring, RingSchedule::burst}) {
        const std::int64_t head_bytes = 128 * heads_kv;
        const std::int64_t of_token = pass == Pass::forward            ? 4 * head_bytes
                                      : schedule == RingSchedule::ring ? 12 * head_bytes
                                                                       : 8 * 128 * 4 + 8 * 4;
        run_local_ranks(devices(4), [&](Communicator& communicator) {
          DistributedOptions options = with(schedule, Kind::zigzag);
          options.plan.device = communicator.device();
          const cli::RankTensors part(tensors, options.layout, communicator.rank(), communicator.size());
          cli::DeviceTensors copies(communicator.device().index);
          part.add_to(copies);
          DistributedPlan plan = DistributedPlan::make(problem, pass, communicator, options);
          const RunReport report =
              pass == Pass::forward ? plan.run(copies.moved(part.forward())) : plan.run(copies.moved(part.backward()));
          EXPECT_EQ(report.traffic.bytes_sent, plan.facts().bytes_sent);
          EXPECT_EQ(report.traffic.bytes_sent, 3 * 128 * of_token);
        });
      }
    }
  }
}

// What each rank's body threw.
std::vector<std::string> failures(int ranks, std::chrono::milliseconds timeout,
                                  const std::function<void(Communicator&)>& body) {
  auto communicators = local_communicators(devices(ranks), {timeout});
  std::vector<std::string> found(communicators.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<Communicator> own = std::move(communicators[rank]);
      try {
        body(*own);
      } catch (const std::exception& error) {
        found[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return found;
}

bool is_poison(const ProblemTensors& tensors, Pass pass) {
  bool poison = true;
  tensors.for_each_output(pass, [&](const std::string&, const cli::HostTensor& tensor) {
    const auto values = tensor.values();
    poison = poison && std::all_of(values.begin(), values.end(), [](double value) { return std::isnan(value); });
  });
  return poison;
}

TEST_F(GpuRanks, AFailureIsToldToAllAndNothingIsWritten) {
  constexpr int kRanks = 3;
  constexpr int kFaulty = 1;
  const Problem problem = gpu_problem(384, 384, 2, 128, Mask::causal());
  for (const bool silent : {false, true}) {
    const ProblemTensors whole(problem, {});
    std::atomic<int> others{kRanks - 1};
    std::array<bool, kRanks> untouched{};
    const auto found = failures(kRanks, silent ? 500ms : 60s, [&](Communicator& communicator) {
      const int rank = communicator.rank();
      DistributedOptions options = with(RingSchedule::ring, Kind::contiguous);
      options.plan.device = communicator.device();
      DistributedPlan plan = DistributedPlan::make(problem, Pass::forward, communicator, options);
      Problem local = problem;
      local.seq_q = local.seq_k = 128;
      const ProblemTensors part(local, {});
      const cli::DeviceTensors copies(part, communicator.device().index);
      ForwardTensors tensors = copies.moved(part.forward());
      const auto check = [&] {
        copies.download(part, Pass::forward);
        untouched[static_cast<std::size_t>(rank)] = is_poison(part, Pass::forward);
      };
      if (rank == kFaulty && silent) {
        while (others > 0) std::this_thread::sleep_for(1ms);
        check();
        return;
      }
      if (rank == kFaulty) tensors.k.shape[1] -= 1;
      try {
        plan.run(tensors);
      } catch (const Error&) {
        check();
        --others;
        throw;
      }
    });
    for (int rank = 0; rank < kRanks; ++rank) {
      // Without a mask between them, rank 0 needs nothing of the others.
      if (rank == 0 && silent) continue;
      EXPECT_TRUE(untouched[static_cast<std::size_t>(rank)]) << "rank " << rank << " wrote";
      if (rank != kFaulty) {
        EXPECT_EQ(found[static_cast<std::size_t>(rank)].find("rank 1 "), 0U) << found[static_cast<std::size_t>(rank)];
      }
    }
  }
}

TEST_F(GpuRanks, ADeviceOfAnotherKindIsRefused) {
  const Problem problem = gpu_problem(64, 64, 1, 128);
  auto communicators = local_communicators(devices(1));
  expect_invalid({"plan.device", "cpu", "cuda:0"},
                 [&] { DistributedPlan::make(problem, Pass::forward, *communicators[0], {}); });
  expect_invalid({"device", "cuda:99"}, [] { local_communicators(std::vector{Device{DeviceKind::cuda, 99}}); });
}

// Which local_communicators() serves.
TEST_F(GpuRanks, ThreadsDoNotCopyBetweenProcesses) {
  run_local_ranks(2, [](Communicator& communicator) {
    EXPECT_EQ(copies_missing(communicator, kGpu), "ranks 0 and 1 are threads of one process");
  });
}

class GpuMerge : public GpuTest {};

TEST_F(GpuMerge, EqualsTheOneOfTheCpu) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const std::int64_t dim : {128, 256, 40, 7}) {
      for (const bool gaps : {false, true}) {
        Problem problem = gpu_problem(77, 5, 3, dim);
        problem.batch = 2;
        problem.dtype = dtype;
        cli::TensorOptions options;
        options.strides = gaps ? cli::StrideKind::padded16 : cli::StrideKind::packed;
        ProblemTensors a(problem, options);
        ProblemTensors b(problem, options);
        ProblemTensors result(problem, options);
        cli::Random random(11);
        for (ProblemTensors* one : {&a, &b}) {
          one->out.fill([&] { return random.normal(); });
          one->lse.fill([&] { return random.chance(0.2) ? -INFINITY : 3 * random.normal(); });
        }
        const auto partial = [](const auto& tensors) { return ConstPartial{tensors.out, tensors.lse}; };
        const cli::DeviceTensors on_a(a, 0);
        const cli::DeviceTensors on_b(b, 0);
        cli::DeviceTensors on_result(result, 0);
        const ForwardTensors target = on_result.moved(result.forward());
        merge(partial(on_a.moved(a.forward())), partial(on_b.moved(b.forward())), {target.out, target.lse});
        on_result.download(result, Pass::forward);
        const Values out = result.out.values();
        const Values lse = result.lse.values();
        EXPECT_TRUE(result.out.gaps_intact());
        merge(partial(a.forward()), partial(b.forward()), {result.forward().out, result.forward().lse});
        const double allowed = dtype == DType::float32 ? 1e-6 : dtype == DType::float16 ? 1e-3 : 8e-3;
        const Values cpu_out = result.out.values();
        const Values cpu_lse = result.lse.values();
        for (std::size_t n = 0; n < out.size(); ++n) {
          ASSERT_NEAR(out[n], cpu_out[n], allowed * (std::abs(cpu_out[n]) + 4)) << dtype_name(dtype) << " " << dim;
        }
        for (std::size_t n = 0; n < lse.size(); ++n) {
          if (std::isinf(cpu_lse[n])) {
            ASSERT_EQ(lse[n], cpu_lse[n]);
          } else {
            ASSERT_NEAR(lse[n], cpu_lse[n], 1e-5);
          }
        }
      }
    }
  }
}

TEST_F(GpuMerge, MemoryOfTheHostIsRefused) {
  const ProblemTensors host(gpu_problem(8, 8, 1, 16), {});
  ForwardTensors tensors = host.forward();
  tensors.out.device = tensors.lse.device = kGpu;
  expect_invalid({"a.out", "host"},
                 [&] { merge({tensors.out, tensors.lse}, {tensors.out, tensors.lse}, {tensors.out, tensors.lse}); });
}

}  // namespace
}  // namespace tessera::test
