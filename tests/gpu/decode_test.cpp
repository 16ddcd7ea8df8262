// The Impl for short queries and for caches, against the oracle: every length, page size and modifier, the same bits in
// every run, and graphs that replay while the lengths grow.
#include <cmath>
#include <tuple>

#include "cli/random.h"
#include "conformance/cases.h"
#include "cuda/memory.h"
#include "gpu/gpu_test.h"
#include "support/key_cache.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using test::bitwise_equal;
using test::kGpu;
using test::Outputs;
using test::Values;

Plan decode_plan(const Problem& problem) {
  PlanOptions options;
  options.device = kGpu;
  options.impl = "decode";
  return Plan::make(problem, Pass::forward, options);
}

// A problem on the device beside the oracle's answer for the numbers that its tensors hold.
class Decoding {
 public:
  explicit Decoding(const Problem& problem, const cli::TensorOptions& options = {.aligned16 = true})
      : host(problem, options), plan(decode_plan(problem)), workspace(plan, kGpu), stream(kGpu.index) {
    test::poison_unused(host);
    host.poison_outputs();
    device = cli::DeviceTensors(host, kGpu.index);
  }

  void enqueue() { plan.run(device.moved(host.forward()), workspace.bytes(), stream.handle()); }
  Outputs fetch() {
    stream.synchronize();
    device.download(host, Pass::forward);
    return test::outputs_of(host, Pass::forward);
  }
  Outputs run() {
    enqueue();
    return fetch();
  }
  void poison() {
    host.poison_outputs();
    device.upload();
  }
  // O and LSE of the reference, in double precision and without a cache.
  Outputs expected() const {
    cli::ProblemTensors oracle = test::without_cache(host).widened();
    PlanOptions options;
    options.impl = "reference";
    return test::run_pass(oracle, Plan::make(oracle.problem(), Pass::forward, options));
  }

  cli::ProblemTensors host;
  Plan plan;
  cli::PlanWorkspace workspace;
  internal::DeviceStream stream;
  cli::DeviceTensors device{kGpu.index};
};

// Twice the rounding of the weights and of O, relative to each output: that of standard attention in the same dtype.
void expect_close(const Outputs& found, const Outputs& expected, const Problem& problem) {
  const double bound = problem.dtype == DType::bfloat16 ? 0x1p-7 : 0x1p-10;
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t n = 0; n < found.size(); ++n) {
    const Values& values = found[n].values;
    Values finite, wanted;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isinf(expected[n].values[i])) {
        EXPECT_EQ(values[i], expected[n].values[i]) << found[n].name << "[" << i << "]";
      } else {
        finite.push_back(values[i]);
        wanted.push_back(expected[n].values[i]);
      }
    }
    EXPECT_LE(test::relative_error(finite, wanted), n == 0 ? bound : 1e-4) << found[n].name;
  }
}

class GpuDecode : public test::GpuTest {
 protected:
  static void check(const Problem& problem, const cli::TensorOptions& options = {.aligned16 = true}) {
    SCOPED_TRACE(problem.describe());
    Decoding decoding(problem, options);
    EXPECT_EQ(decoding.plan.facts().impl, "decode");
    expect_close(decoding.run(), decoding.expected(), problem);
  }
};

Problem long_problem() {
  Problem problem = test::cache_problem(0, false);
  problem.batch = 2;
  problem.seq_k = 5003;
  problem.dim_qk = problem.dim_v = 128;
  return problem;
}

class SmallDecode : public GpuDecode, public testing::WithParamInterface<std::int64_t> {};

// Of every head dim: rows that fill a tile, leave one and need several.
TEST_P(SmallDecode, GroupsAndQueries) {
  const std::tuple<std::int64_t, std::int64_t, std::int64_t> shapes[] = {{1, 1, 1}, {8, 2, 1},  {16, 1, 1}, {4, 4, 3},
                                                                         {6, 1, 5}, {16, 1, 4}, {10, 2, 16}};
  for (const auto& [heads_q, heads_kv, queries] : shapes) {
    Problem problem = test::cache_problem(0, false);
    problem.heads_q = heads_q;
    problem.heads_kv = heads_kv;
    problem.seq_q = queries;
    problem.dim_qk = problem.dim_v = GetParam();
    check(problem);
    problem.mask = Mask::none();
    check(problem);
  }
}

INSTANTIATE_TEST_SUITE_P(Dims, SmallDecode, testing::Values(8, 40, 64, 96, 128, 192, 256),
                         testing::PrintToStringParamName());

TEST_F(GpuDecode, LengthsOfEveryKind) {
  Problem problem = test::cache_problem(0, false);
  problem.batch = 7;
  problem.key_lengths = {0, 1, 15, 16, 17, 332, 333};
  check(problem);
  problem.mask = Mask::none();
  check(problem);
  problem.seq_k = 0;
  problem.key_lengths.assign(7, 0);
  check(problem);
}

TEST_F(GpuDecode, PagesOfEverySize) {
  for (const std::int64_t page_size : {16, 32, 64, 128, 256}) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      check(test::cache_problem(page_size, true), {.seed = seed, .aligned16 = true});
    }
  }
}

TEST_F(GpuDecode, ModifiersAndMasks) {
  for (const std::int64_t page_size : {0, 64}) {
    for (const Mask& mask : {Mask::window(40, 1), Mask::causal(Alignment::top_left()), Mask::causal(Alignment::at(100)),
                             Mask::window(20, Mask::kUnlimited)}) {
      Problem problem = test::cache_problem(page_size, true);
      problem.mask = mask;
      check(problem);
      problem.softcap = 3.0F;
      problem.sinks = true;
      problem.alibi = true;
      check(problem);
      problem.scale = -0.2F;
      check(problem);
    }
  }
}

TEST_F(GpuDecode, DtypesDimsAndStrides) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const std::int64_t page_size : {0, 32}) {
      Problem problem = test::cache_problem(page_size, true);
      problem.dtype = dtype;
      problem.dim_qk = 192;
      problem.dim_v = 128;
      cli::TensorOptions tensors{.strides = {}, .aligned16 = true};
      check(problem, tensors);
      problem.output_dtype = DType::float32;
      check(problem, tensors);
    }
  }
}

TEST_F(GpuDecode, ManyQueriesOfAPagedCache) {
  Problem problem = test::cache_problem(32, true);
  problem.seq_q = 150;
  check(problem);
}

TEST_F(GpuDecode, SameBitsInEveryRun) {
  for (const std::int64_t page_size : {0, 16}) {
    Problem problem = long_problem();
    problem.page_size = page_size;
    problem.lengths_in_tensors = page_size != 0;
    Decoding decoding(problem);
    const Outputs first = decoding.run();
    expect_close(first, decoding.expected(), problem);
    for (int run = 0; run < 30; ++run) {
      decoding.poison();
      ASSERT_TRUE(bitwise_equal(first, decoding.run())) << "run " << run;
    }
  }
}

// One plan and one graph for all steps of decoding: append, count, attend.
TEST_F(GpuDecode, GraphReplaysWhileLengthsGrow) {
  for (const std::int64_t page_size : {0, 32}) {
    Problem problem = test::cache_problem(page_size, true);
    problem.seq_q = 1;
    Decoding decoding(problem);
    cli::HostTensor k(problem.dtype, std::array{problem.batch, std::int64_t{1}, problem.heads_kv, problem.dim_qk});
    cli::HostTensor v(problem.dtype, std::array{problem.batch, std::int64_t{1}, problem.heads_kv, problem.dim_v});
    cli::HostTensor before(DType::int32, std::array{problem.batch});
    cli::Random random(3);
    for (cli::HostTensor* cache : {&decoding.host.k, &decoding.host.v}) cache->fill([&] { return random.normal(); });
    std::vector<std::int64_t> lengths{0, 31, 200, 320};
    const auto fill_step = [&] {
      k.fill([&] { return random.normal(); });
      v.fill([&] { return random.normal(); });
      auto next = lengths.begin();
      before.fill([&] { return static_cast<double>(*next++); });
    };
    fill_step();
    for (cli::HostTensor* tensor : {&k, &v, &before}) decoding.device.add(*tensor);
    const auto step = [&] {
      ForwardTensors tensors = decoding.device.moved(decoding.host.forward());
      ForwardTensors more = tensors;
      more.k = k.const_view();
      more.v = v.const_view();
      more.key_lengths = before.const_view();
      more.q = decoding.host.q.const_view();
      more.out = decoding.host.out.view();
      more.lse = decoding.host.lse.view();
      more.page_table = decoding.host.page_table.const_view();
      more = decoding.device.moved(more);
      TensorView k_cache = decoding.host.k.view(), v_cache = decoding.host.v.view();
      k_cache.data = const_cast<void*>(tensors.k.data);
      v_cache.data = const_cast<void*>(tensors.v.data);
      k_cache.device = v_cache.device = kGpu;
      append_keys({more.k, more.v, k_cache, v_cache, more.key_lengths, tensors.page_table}, decoding.stream.handle());
      decoding.enqueue();
    };
    step();  // what a first run loads is loaded
    decoding.stream.capture(step);
    for (int round = 0; round < 12; ++round) {
      fill_step();
      for (std::int64_t& length : lengths) ++length;
      test::set_cache_lengths(decoding.host, lengths);
      decoding.host.poison_outputs();
      decoding.device.upload();  // the host's cache has what earlier rounds appended
      decoding.stream.replay();
      const Outputs found = decoding.fetch();
      decoding.device.download(decoding.host.k);
      decoding.device.download(decoding.host.v);
      SCOPED_TRACE(round);
      expect_close(found, decoding.expected(), problem);
    }
  }
}

// Every row of the table that it takes; a NaN reaches rows of its tile that do not see it (docs/numerics.md).
TEST_F(GpuDecode, ConformanceTable) {
  const test::Target target{"decode", "", 1, kGpu};
  int taken = 0;
  for (test::Case row : test::conformance_cases()) {
    row.tensors.aligned16 = true;
    if (row.problem.dtype == DType::float32) row.problem.dtype = DType::bfloat16;
    if (row.tensors.specials || !test::accepts(row.problem, Pass::forward, target)) continue;
    SCOPED_TRACE(row.name);
    ++taken;
    test::expect_conforms(row.problem, row.tensors, {target});
  }
  EXPECT_GT(taken, 20);
}

TEST_F(GpuDecode, TakesShortQueriesAndSaysWhyNotOthers) {
  const auto impl_of = [](const Problem& problem) {
    PlanOptions options;
    options.device = kGpu;
    return Plan::make(problem, Pass::forward, options).facts().impl;
  };
  EXPECT_EQ(impl_of(long_problem()), "decode");
  Problem problem = long_problem();
  problem.seq_q = 17;
  EXPECT_NE(impl_of(problem), "decode");
  const auto refusal = [](const Problem& refused) {
    PlanOptions options;
    options.device = kGpu;
    options.impl = "decode";
    return test::refusal(refused, Pass::forward, options);
  };
  EXPECT_NE(refusal(problem).find("decode: seq_q: "), std::string::npos);
  problem = long_problem();
  problem.dtype = DType::float32;
  EXPECT_NE(refusal(problem).find("decode: dtype: "), std::string::npos);
  problem = long_problem();
  problem.dim_qk = 100;
  EXPECT_NE(refusal(problem).find("decode: dim_qk: "), std::string::npos);
  problem = long_problem();
  problem.dropout.probability = 0.5;
  EXPECT_NE(refusal(problem).find("decode: dropout: "), std::string::npos);
}

}  // namespace
}  // namespace tessera
