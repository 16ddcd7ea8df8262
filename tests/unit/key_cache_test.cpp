// Caches of keys: pages, lengths that come with the tensors, and appending.
#include <gtest/gtest.h>

#include <string>

#include "cli/random.h"
#include "support/expect_error.h"
#include "support/key_cache.h"
#include "support/targets.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using test::cache_problem;
using test::expect_error;
using test::expect_invalid;

// Of each Impl that takes caches on the CPU.
class KeyCacheImpl : public testing::TestWithParam<std::string> {
 protected:
  static PlanOptions options() {
    PlanOptions options;
    options.impl = GetParam();
    options.threads = 1;
    return options;
  }

  // The same numbers, bit by bit, with and without the cache.
  static void expect_same(const Problem& problem, const cli::TensorOptions& tensor_options = {}) {
    SCOPED_TRACE(problem.describe());
    cli::ProblemTensors cached(problem, tensor_options);
    test::poison_unused(cached);
    cli::ProblemTensors plain = test::without_cache(cached);
    const Plan cached_plan = Plan::make(problem, Pass::forward, options());
    const Plan plain_plan = Plan::make(plain.problem(), Pass::forward, options());
    EXPECT_TRUE(test::bitwise_equal(test::run_pass(cached, cached_plan), test::run_pass(plain, plain_plan)));
  }
};

TEST_P(KeyCacheImpl, PagesOfEverySize) {
  for (const std::int64_t page_size : {16, 32, 128, 512}) {
    expect_same(cache_problem(page_size, false));
    expect_same(cache_problem(page_size, true));
  }
}

TEST_P(KeyCacheImpl, LengthsInTensorsWithoutPages) { expect_same(cache_problem(0, true)); }

TEST_P(KeyCacheImpl, KeyLengthsWithPages) {
  Problem problem = cache_problem(16, false);
  problem.key_lengths = {333, 0, 1, 17};
  expect_same(problem);
}

TEST_P(KeyCacheImpl, ModifiersMasksAndStrides) {
  Problem problem = cache_problem(64, true);
  problem.mask = Mask::window(40, 1);
  problem.softcap = 7.0F;
  problem.alibi = true;
  problem.sinks = true;
  for (const std::uint64_t seed : {1, 2, 3}) {
    cli::TensorOptions tensors;
    tensors.seed = seed;
    tensors.strides.reset();
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      problem.dtype = dtype;
      expect_same(problem, tensors);
    }
  }
}

TEST_P(KeyCacheImpl, LengthsChangeBetweenRunsOfOnePlan) {
  const Problem problem = cache_problem(32, true);
  const Plan plan = Plan::make(problem, Pass::forward, options());
  cli::ProblemTensors cached(problem, {});
  for (const std::int64_t first : {0, 1, 16, 31, 32, 33, 332, 333}) {
    test::set_cache_lengths(cached, {first, 333 - first, 100, 0});
    cli::ProblemTensors plain = test::without_cache(cached);
    const Plan plain_plan = Plan::make(plain.problem(), Pass::forward, options());
    EXPECT_TRUE(test::bitwise_equal(test::run_pass(cached, plan), test::run_pass(plain, plain_plan))) << first;
  }
}

TEST_P(KeyCacheImpl, AWrongLengthOrPageIsNamed) {
  const Problem problem = cache_problem(32, true);
  const Plan plan = Plan::make(problem, Pass::forward, options());
  cli::ProblemTensors tensors(problem, {});
  test::set_cache_lengths(tensors, {0, 334, 0, 0});
  expect_invalid({"key_lengths[1]", "334", "0 to 333"}, [&] { plan.run(tensors.forward()); });
  test::set_cache_lengths(tensors, {0, 0, -1, 0});
  expect_invalid({"key_lengths[2]", "-1", "0 to 333"}, [&] { plan.run(tensors.forward()); });
  test::set_cache_lengths(tensors, {0, 0, 0, 65});
  tensors.page_table.fill([] { return 1000.0; });
  expect_invalid({"page_table[3][0]", "1000", "0 to 46"}, [&] { plan.run(tensors.forward()); });
  test::set_cache_lengths(tensors, {0, 0, 0, 0});
  plan.run(tensors.forward());  // pages that no sequence uses may hold anything
}

INSTANTIATE_TEST_SUITE_P(Impls, KeyCacheImpl, testing::Values("flash", "reference"));

TEST(KeyCache, TensorsArePresentExactlyWhenTheProblemSaysSo) {
  cli::ProblemTensors tensors(cache_problem(32, true), {});
  const ForwardTensors all = tensors.forward();
  const Plan plan = Plan::make(tensors.problem(), Pass::forward, {});
  const auto refused = [&](std::initializer_list<std::string_view> parts, void (*change)(ForwardTensors&)) {
    ForwardTensors wrong = all;
    change(wrong);
    expect_invalid(parts, [&] { plan.run(wrong); });
  };
  refused({"key_lengths", "absent", "int32[4]"}, [](ForwardTensors& t) { t.key_lengths = {}; });
  refused({"page_table", "absent", "int32[4, 11]"}, [](ForwardTensors& t) { t.page_table = {}; });
  refused({"key_lengths dtype", "float32", "int32"}, [](ForwardTensors& t) { t.key_lengths.dtype = DType::float32; });
  refused({"page_table", "[4, 11]"}, [](ForwardTensors& t) { t.page_table.shape[1] = 10; });
  refused({"v", "as many pages as k, 47"}, [](ForwardTensors& t) { t.v.shape[0] = 46; });
  refused({"k", "[47, 32, 2, 64]"}, [](ForwardTensors& t) { t.k.shape[1] = 16; });
  const Plan plain = Plan::make(cache_problem(0, false), Pass::forward, {});
  cli::ProblemTensors without(cache_problem(0, false), {});
  ForwardTensors more = without.forward();
  more.key_lengths = all.key_lengths;
  expect_invalid({"key_lengths", "absent, since the problem has no lengths_in_tensors"}, [&] { plain.run(more); });
  more = without.forward();
  more.page_table = all.page_table;
  expect_invalid({"page_table", "absent, since the problem has no page_size"}, [&] { plain.run(more); });
}

TEST(KeyCache, ProblemsAreValidated) {
  const auto refused = [](std::initializer_list<std::string_view> parts, void (*change)(Problem&)) {
    Problem problem = cache_problem(32, true);
    change(problem);
    expect_invalid(parts, [&] { validate(problem); });
  };
  for (const std::int64_t size : {-16, 1, 8, 24, 100}) {
    Problem problem = cache_problem(size, false);
    expect_invalid({"page_size", std::to_string(size), "a power of two from 16"}, [&] { validate(problem); });
  }
  refused({"key_lengths", "4 numbers", "lengths_in_tensors"}, [](Problem& p) { p.key_lengths = {1, 2, 3, 4}; });
  refused({"page_size", "cu_seqlens_q"}, [](Problem& p) {
    p.lengths_in_tensors = false;
    set_ragged(p, {0, 3}, {0, 5});
  });
  refused({"lengths_in_tensors", "cu_seqlens_q"}, [](Problem& p) {
    p.page_size = 0;
    set_ragged(p, {0, 3}, {0, 5});
  });
  refused({"dtype", "int32", "float32"}, [](Problem& p) { p.dtype = DType::int32; });
}

TEST(KeyCache, TheBackwardPassAndOtherImplsRefuseByName) {
  expect_invalid({"page_size", "32", "0 in the backward pass"},
                 [] { Plan::make(cache_problem(32, false), Pass::backward, {}); });
  expect_invalid({"lengths_in_tensors", "false in the backward pass"},
                 [] { Plan::make(cache_problem(0, true), Pass::backward, {}); });
  for (const std::string& name : test::cpu_impls()) {
    if (name != "standard") continue;
    PlanOptions options;
    options.impl = name;
    expect_error(ErrorCode::unsupported, {"standard: page_size"},
                 [&] { Plan::make(cache_problem(32, false), Pass::forward, options); });
    expect_error(ErrorCode::unsupported, {"standard: lengths_in_tensors"},
                 [&] { Plan::make(cache_problem(0, true), Pass::forward, options); });
  }
}

TEST(KeyCache, ProblemsSayThatTheyHaveOne) {
  const std::string text = cache_problem(32, true).describe();
  EXPECT_NE(text.find("pages of 32"), std::string::npos) << text;
  EXPECT_NE(text.find("lengths in tensors"), std::string::npos) << text;
  EXPECT_NE(cache_problem(32, true), cache_problem(64, true));
  EXPECT_NE(cache_problem(32, true), cache_problem(32, false));
}

// New keys and values for the tensors' cache, and where they go.
struct Appending {
  explicit Appending(const Problem& problem, std::int64_t tokens = 5)
      : cache(problem, {}),
        k(problem.dtype, std::array{problem.batch, tokens, problem.heads_kv, problem.dim_qk}),
        v(problem.dtype, std::array{problem.batch, tokens, problem.heads_kv, problem.dim_v}) {
    cli::Random random(7);
    k.fill([&] { return random.normal(); });
    v.fill([&] { return random.normal(); });
  }
  AppendTensors tensors() const {
    return {k.const_view(),
            v.const_view(),
            cache.k.view(),
            cache.v.view(),
            cache.key_lengths.const_view(),
            cache.page_table.const_view()};
  }

  cli::ProblemTensors cache;
  cli::HostTensor k, v;
};

TEST(AppendKeys, GoBehindThoseInUse) {
  for (const std::int64_t page_size : {0, 16, 64}) {
    Appending appending(cache_problem(page_size, true));
    const std::vector<std::int64_t> before{0, 14, 328, 59};
    test::set_cache_lengths(appending.cache, before);
    cli::ProblemTensors expected = test::without_cache(appending.cache);
    append_keys(appending.tensors());
    std::vector<std::int64_t> after = before;
    for (std::int64_t& length : after) length += 5;
    test::set_cache_lengths(appending.cache, after);
    const cli::ProblemTensors found = test::without_cache(appending.cache);
    for (std::int64_t b = 0; b < 4; ++b) {
      const std::int64_t length = before[static_cast<std::size_t>(b)];
      const auto part = [&](const ConstTensorView& view, std::int64_t begin, std::int64_t count) {
        return test::values_of(test::slice(test::slice(view, 0, b, 1), 1, begin, count));
      };
      EXPECT_EQ(part(found.k.const_view(), length, 5), part(appending.k.const_view(), 0, 5));
      EXPECT_EQ(part(found.v.const_view(), length, 5), part(appending.v.const_view(), 0, 5));
      EXPECT_EQ(part(found.k.const_view(), 0, length), part(expected.k.const_view(), 0, length));
      EXPECT_EQ(part(found.v.const_view(), 0, length), part(expected.v.const_view(), 0, length));
    }
  }
}

TEST(AppendKeys, RefusesBeforeItWrites) {
  Appending appending(cache_problem(32, true));
  test::set_cache_lengths(appending.cache, {0, 0, 0, 350});
  const std::vector<double> before = appending.cache.page_table.values();
  const std::vector<double> keys = appending.cache.k.values();
  expect_invalid({"key_lengths[3]", "350", "0 to 347"}, [&] { append_keys(appending.tensors()); });
  test::set_cache_lengths(appending.cache, {0, 0, 0, 30});
  appending.cache.page_table.fill([n = 0]() mutable { return n++ == 34 ? 47.0 : 3.0; });
  expect_invalid({"page_table[3][1]", "47", "0 to 46"}, [&] { append_keys(appending.tensors()); });
  EXPECT_EQ(keys, appending.cache.k.values());
}

TEST(AppendKeys, TensorsAreValidated) {
  const Appending appending(cache_problem(32, true));
  const auto refused = [&](std::initializer_list<std::string_view> parts, void (*change)(AppendTensors&)) {
    AppendTensors wrong = appending.tensors();
    change(wrong);
    expect_invalid(parts, [&] { append_keys(wrong); });
  };
  refused({"k", "[batch, tokens, heads_kv, dim]"}, [](AppendTensors& t) { t.k.rank = 3; });
  refused({"v", "[4, 5, 2, 40]"}, [](AppendTensors& t) { t.v.shape[1] = 4; });
  refused({"k_cache", "[47, 32, 2, 64]"}, [](AppendTensors& t) { t.k_cache.shape[2] = 1; });
  refused({"v_cache", "[47, 32, 2, 40]"}, [](AppendTensors& t) { t.v_cache.shape[0] = 46; });
  refused({"k_cache: page_size", "24", "power of two"},
          [](AppendTensors& t) { t.k_cache.shape[1] = t.v_cache.shape[1] = 24; });
  refused({"key_lengths", "absent"}, [](AppendTensors& t) { t.key_lengths = {}; });
  refused({"page_table dtype", "float32"}, [](AppendTensors& t) { t.page_table.dtype = DType::float32; });
  refused({"k dtype", "int32"}, [](AppendTensors& t) { t.k.dtype = DType::int32; });
}

}  // namespace
}  // namespace tessera
