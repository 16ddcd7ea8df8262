// Whatever a caller gets wrong is one Error with the cause; the stream and the context compute on.
#include <functional>

#include "gpu/gpu_runs.h"
#include "support/expect_error.h"

namespace tessera {
namespace {

using test::expect_error;
using test::expect_invalid;
using test::gpu_problem;
using test::GpuRuns;

class SmallErrors : public test::GpuTest {
 protected:
  static Problem problem() {
    Problem result = gpu_problem(70, 90, 2, 64, Mask::causal());
    result.batch = 2;
    return result;
  }
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    runs_ = std::make_unique<GpuRuns>(problem());
    expected_ = runs_->run();
  }

  using Parts = std::initializer_list<std::string_view>;
  void refused_forward(const std::function<void(ForwardTensors&)>& change, Parts parts) {
    ForwardTensors tensors = runs_->forward_tensors();
    change(tensors);
    expect_invalid(parts,
                   [&] { runs_->forward.run(tensors, runs_->forward_workspace.bytes(), runs_->stream.handle()); });
    expect_works();
  }
  void refused_backward(const std::function<void(BackwardTensors&)>& change, Parts parts) {
    BackwardTensors tensors = runs_->backward_tensors();
    change(tensors);
    expect_invalid(parts,
                   [&] { runs_->backward.run(tensors, runs_->backward_workspace.bytes(), runs_->stream.handle()); });
    expect_works();
  }
  // Nothing was written, and the same stream still computes what it did.
  void expect_works() {
    EXPECT_TRUE(test::bitwise_equal(expected_, runs_->fetch()));
    runs_->poison();
    EXPECT_TRUE(test::bitwise_equal(expected_, runs_->run()));
  }

  std::unique_ptr<GpuRuns> runs_;
  test::Outputs expected_;
};

template <class View>
void shift(View& view, std::ptrdiff_t bytes) {
  using Byte = std::conditional_t<std::is_same_v<View, TensorView>, std::byte, const std::byte>;
  view.data = static_cast<Byte*>(view.data) + bytes;
}

TEST_F(SmallErrors, MemoryOfTheHost) {
  refused_forward([&](auto& t) { t.q.data = runs_->host.q.view().data; }, {"q data", "host memory", "cuda:0"});
  refused_forward([&](auto& t) { t.out.data = runs_->host.out.view().data; }, {"out data", "host memory"});
  refused_forward([&](auto& t) { t.lse.data = runs_->host.lse.view().data; }, {"lse data", "host memory"});
  refused_backward([&](auto& t) { t.dout.data = runs_->host.dout.view().data; }, {"dout data", "host memory"});
  refused_backward([&](auto& t) { t.dq.data = runs_->host.dq.view().data; }, {"dq data", "host memory"});
}

TEST_F(SmallErrors, WrongDtype) {
  refused_forward([](auto& t) { t.k.dtype = DType::float16; }, {"k dtype", "float16", "bfloat16"});
  refused_forward([](auto& t) { t.lse.dtype = DType::bfloat16; }, {"lse dtype", "bfloat16", "float32"});
  refused_backward([](auto& t) { t.dv.dtype = DType::float32; }, {"dv dtype", "float32", "bfloat16"});
}

TEST_F(SmallErrors, WrongDevice) {
  refused_forward([](auto& t) { t.v.device = {}; }, {"v device", "cpu", "cuda:0"});
  refused_forward([](auto& t) { t.v.device.index = 1; }, {"v device", "cuda:1", "cuda:0"});
  refused_backward([](auto& t) { t.dk.device.index = 7; }, {"dk device", "cuda:7", "cuda:0"});
  PlanOptions options = test::gpu_options();
  options.device.index = 99;
  expect_invalid({"device", "cuda:99", "cuda:0"}, [&] { Plan::make(problem(), Pass::forward, options); });
  expect_works();
}

TEST_F(SmallErrors, StridesThatAreNotMultiplesOf16Bytes) {
  refused_forward([](auto& t) { t.q.strides[1] += 1; }, {"q stride 1", "16 bytes"});
  refused_forward([](auto& t) { t.k.strides[0] += 4; }, {"k stride 0", "16 bytes"});
  refused_forward([](auto& t) { t.out.strides[2] += 2; }, {"out stride 2", "16 bytes"});
  refused_backward([](auto& t) { t.dout.strides[1] += 1; }, {"dout stride 1", "16 bytes"});
  refused_backward([](auto& t) { t.dk.strides[1] += 1; }, {"dk stride 1", "16 bytes"});
}

TEST_F(SmallErrors, AddressesThatAreNotMultiplesOf16Bytes) {
  refused_forward([](auto& t) { shift(t.q, 2); }, {"q data", "2 bytes", "16 bytes"});
  refused_backward([](auto& t) { shift(t.v, 8); }, {"v data", "8 bytes", "16 bytes"});
}

// What `padded` tensors of a host would be.
TEST_F(SmallErrors, PaddedTensorsOfTheHost) {
  cli::ProblemTensors padded(problem(), {.strides = cli::StrideKind::padded});
  expect_invalid({"q stride", "16 bytes"}, [&] { cli::run_plan(runs_->forward, test::kGpu, padded); });
  expect_works();
}

TEST_F(SmallErrors, Workspace) {
  for (const bool forward : {true, false}) {
    const Plan& plan = forward ? runs_->forward : runs_->backward;
    if (plan.workspace_bytes() == 0) continue;
    std::span<std::byte> bytes = (forward ? runs_->forward_workspace : runs_->backward_workspace).bytes();
    const auto run = [&](std::span<std::byte> workspace) {
      if (forward) {
        plan.run(runs_->forward_tensors(), workspace, runs_->stream.handle());
      } else {
        plan.run(runs_->backward_tensors(), workspace, runs_->stream.handle());
      }
    };
    const std::string needed = std::to_string(plan.workspace_bytes());
    expect_invalid({"workspace", needed}, [&] { run(bytes.first(bytes.size() - 1)); });
    expect_works();
  }
}

TEST_F(SmallErrors, RefusalsNameTheField) {
  const auto refused = [](const std::function<void(Problem&)>& change, std::string_view field) {
    Problem changed = problem();
    change(changed);
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      expect_error(ErrorCode::unsupported, {"sm90: " + std::string(field)}, [&] { test::gpu_plan(changed, pass); });
    }
  };
  refused([](Problem& p) { p.dtype = DType::float32; }, "dtype");
  refused([](Problem& p) { p.output_dtype = DType::float32; }, "output_dtype");
  refused([](Problem& p) { p.dim_qk = 68; }, "dim_qk");
  refused([](Problem& p) { p.dim_v = 264; }, "dim_v");
  refused([](Problem& p) { p.scale = -1.0F; }, "scale");
  expect_works();
}

}  // namespace
}  // namespace tessera
