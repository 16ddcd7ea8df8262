// Lengths around the edges of tiles for every head dim, memory layouts, and sizes beyond 32 bits.
#include <optional>
#include <tuple>
#include <utility>

#include "cli/sample_error.h"
#include "cuda/memory.h"
#include "gpu/gpu_test.h"
#include "support/far_tensors.h"

namespace tessera {
namespace {

using cli::HostTensor;
using cli::ProblemTensors;
using cli::StrideKind;
using cli::TensorOptions;
using test::gpu_problem;
using test::GpuTest;

struct NamedMask {
  const char* name;
  Mask mask;
};

void PrintTo(const NamedMask& row, std::ostream* out) { *out << row.name; }

std::vector<NamedMask> masks() {
  return {{"dense", Mask::none()},
          {"causal", Mask::causal()},
          {"causal_top_left", Mask::causal(Alignment::top_left())},
          {"window", Mask::window(100, 30)},
          {"right_side", Mask::window(Mask::kUnlimited, 50)},
          {"far_away", Mask::window(20, 20, Alignment::at(-400))}};
}

class GpuLengths : public GpuTest, public testing::WithParamInterface<std::tuple<std::int64_t, NamedMask>> {};

TEST_P(GpuLengths, AroundTheEdgesOfTiles) {
  constexpr std::int64_t kLengths[][2] = {{0, 5},     {5, 0},     {1, 1},     {1, 129},   {129, 1},  {63, 65},
                                          {64, 64},   {65, 63},   {127, 128}, {128, 127}, {80, 144}, {191, 193},
                                          {192, 257}, {257, 192}, {333, 400}, {513, 161}};
  const auto& [dim, mask] = GetParam();
  for (const auto& [queries, keys] : kLengths) {
    Problem problem = gpu_problem(queries, keys, 1, dim, mask.mask);
    if (test::lacks_kernel(problem)) GTEST_SKIP() << "this build has no kernel for head dim " << dim;
    problem.dtype = (queries + keys) % 2 == 0 ? DType::bfloat16 : DType::float16;
    TensorOptions tensors;
    tensors.seed = static_cast<std::uint64_t>(queries * 1000 + keys);
    tensors.dlse = queries % 2 == 1;
    test::expect_conforms(problem, tensors, test::gpu_targets());
  }
}

INSTANTIATE_TEST_SUITE_P(Table, GpuLengths,
                         testing::Combine(testing::Values(64, 96, 128, 192, 256), testing::ValuesIn(masks())),
                         [](const auto& info) {
                           return "dim" + std::to_string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
                         });

class GpuShapes : public GpuTest {};

// Every multiple of 8, which the next larger kernel computes.
TEST_F(GpuShapes, EveryHeadDim) {
  for (std::int64_t dim = 8; dim <= 256; dim += 8) {
    Problem problem = gpu_problem(70, 133, 1, dim, Mask::causal());
    problem.dim_v = dim % 16 == 0 ? dim : 264 - dim;
    if (!test::lacks_kernel(problem)) test::expect_conforms(problem, {}, test::gpu_targets());
  }
}

// Outputs and gaps are poisoned: what is not written, or written beside the elements, is found.
TEST_F(GpuShapes, EveryMemoryLayout) {
  for (const auto strides : {std::optional(StrideKind::packed), std::optional(StrideKind::heads_first),
                             std::optional(StrideKind::padded16), std::optional<StrideKind>()}) {
    for (const bool ragged : {false, true}) {
      Problem problem = gpu_problem(150, 201, 4, 64, Mask::causal());
      problem.batch = 2;
      problem.heads_kv = 2;
      problem.dim_v = 48;
      if (ragged) set_ragged(problem, {0, 60, 60, 150}, {0, 1, 75, 201});
      TensorOptions tensors;
      tensors.strides = strides;
      tensors.aligned16 = tensors.dlse = true;
      SCOPED_TRACE(cli::strides_text(tensors) + (ragged ? ", ragged" : ""));
      test::expect_conforms(problem, tensors, test::gpu_targets());
    }
  }
}

// Scores so far apart that those of a later tile of keys pass the maximum that a row keeps, in some rows of a warp alone.
TEST_F(GpuShapes, ScoresThatPassTheMaximum) {
  const BlockGrid grid{300, 700, 64, 64};
  const Mask masks[] = {Mask::none(), Mask::causal(), Mask::window(200, 20),
                        Mask::blocks(block_patterns::random(grid, 0.6, 12))};
  for (const std::int64_t dim : {64, 96, 128, 192, 256}) {
    for (const Mask& mask : masks) {
      for (const DType dtype : {DType::bfloat16, DType::float16}) {
        Problem problem = gpu_problem(300, 700, 2, dim, mask);
        problem.dtype = dtype;
        problem.scale = 1.0F;
        SCOPED_TRACE(problem.describe());
        if (!test::lacks_kernel(problem)) test::expect_conforms(problem, {}, test::gpu_targets());
      }
    }
  }
}

TEST_F(GpuShapes, ManySequencesAndHeads) {
  Problem problem = gpu_problem(3, 40, 24, 64, Mask::causal());
  problem.batch = 70;
  problem.heads_kv = 3;
  test::expect_conforms(problem, {}, test::gpu_targets());
}

// The last queries of a long causal sequence against all of its keys: they alone see the last keys, so that dK and dV of
// these are those of the whole.
TEST_F(GpuShapes, LongSequence) {
  constexpr std::int64_t kLength = 128 * 1024;
  constexpr std::int64_t kRows = 16;
  const Problem problem = gpu_problem(kLength, kLength, 1, 64, Mask::causal());
  ProblemTensors tensors(problem, {});
  const cli::SampledError forward = [&] {
    cli::run_plan(test::gpu_plan(problem, Pass::forward), test::kGpu, tensors);
    return cli::sampled_error(tensors, Pass::forward);
  }();
  EXPECT_LE(forward.error, 6e-3) << forward.output;
  cli::run_plan(test::gpu_plan(problem, Pass::backward), test::kGpu, tensors);

  const Problem tail = cli::widened(gpu_problem(kRows, kLength, 1, 64, Mask::causal()));
  ProblemTensors oracle(tail, {});
  const auto rows_of = [](const HostTensor& tensor, std::int64_t rows) {
    return test::values_of(test::slice(tensor.const_view(), 1, tensor.view().shape[1] - rows, rows));
  };
  test::assign(oracle.q, rows_of(tensors.q, kRows));
  test::assign(oracle.dout, rows_of(tensors.dout, kRows));
  test::assign(oracle.k, tensors.k.values());
  test::assign(oracle.v, tensors.v.values());
  PlanOptions reference;
  reference.impl = "reference";
  test::run_both(oracle, reference);
  EXPECT_LE(test::relative_error(rows_of(tensors.dq, kRows), oracle.dq.values()), 1e-2);
  EXPECT_LE(test::relative_error(rows_of(tensors.dk, kRows), rows_of(oracle.dk, kRows)), 1e-2);
  EXPECT_LE(test::relative_error(rows_of(tensors.dv, kRows), rows_of(oracle.dv, kRows)), 1e-2);
}

// The axis of a [batch, seq, heads, dim] tensor that is far apart. LSE is packed: no problem has 2^31 rows, and all that
// lies in between is copied too.
class GpuAddressing : public GpuTest, public testing::WithParamInterface<int> {};

TEST_P(GpuAddressing, ElementsBeyondThirtyTwoBits) {
  const int axis = GetParam();
  Problem problem = gpu_problem(70, 90, 2, 64, Mask::causal());
  problem.batch = 2;
  ProblemTensors near(problem, {});
  const test::Outputs expected = test::run_both(near, test::gpu_options());

  constexpr std::size_t kLseStart = std::size_t{1} << 19;
  const auto bytes = static_cast<std::size_t>(2 * test::FarTensors::kFarStride) + 2 * kLseStart;
  const test::Reservation memory(bytes);
  ASSERT_TRUE(memory.valid()) << "no " << bytes << " bytes of address space";
  madvise(memory.data(), bytes, MADV_HUGEPAGE);
  internal::DeviceMemory device(test::kGpu.index, bytes);
  auto* host_start = static_cast<std::byte*>(memory.data());
  ProblemTensors result(problem, {});
  test::FarTensors layout(host_start, axis);
  test::FarTensors lse_layout(host_start + kLseStart, kMaxRank);
  std::vector<std::pair<TensorView, const HostTensor*>> outputs;
  const auto moved = [&](TensorView view) {
    view.data = static_cast<std::byte*>(device.data()) + (static_cast<std::byte*>(view.data) - host_start);
    view.device = test::kGpu;
    return view;
  };
  const auto output = [&](test::FarTensors& where, const HostTensor& tensor) {
    outputs.emplace_back(where.place(tensor), &tensor);
    return moved(outputs.back().first);
  };
  BackwardTensors far;
  far.q = moved(layout.place(near.q));
  far.k = moved(layout.place(near.k));
  far.v = moved(layout.place(near.v));
  far.dout = moved(layout.place(near.dout));
  const TensorView out = output(layout, result.out);
  const TensorView lse = output(lse_layout, result.lse);
  far.dq = output(layout, result.dq);
  far.dk = output(layout, result.dk);
  far.dv = output(layout, result.dv);
  device.copy_from(host_start, bytes);
  const internal::DeviceStream stream(test::kGpu.index);
  test::gpu_plan(problem, Pass::forward).run(ForwardTensors{far.q, far.k, far.v, out, lse, {}}, {}, stream.handle());
  far.out = out;
  far.lse = lse;
  test::gpu_plan(problem, Pass::backward).run(far, {}, stream.handle());
  stream.synchronize();
  device.copy_to(host_start, bytes);
  for (const auto& [view, tensor] : outputs) test::FarTensors::copy(view, tensor->view());

  test::Outputs actual = test::outputs_of(result, Pass::forward);
  for (test::NamedValues& one : test::outputs_of(result, Pass::backward)) actual.push_back(std::move(one));
  EXPECT_TRUE(test::bitwise_equal(actual, expected));
}

INSTANTIATE_TEST_SUITE_P(Axes, GpuAddressing, testing::Values(0, 2),
                         [](const auto& info) { return std::string(info.param == 0 ? "batch" : "heads"); });

}  // namespace
}  // namespace tessera
