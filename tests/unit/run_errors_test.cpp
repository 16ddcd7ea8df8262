// What Plan::run refuses: every message names the tensor, what it was and what is accepted, and nothing is written.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "support/expect_error.h"
#include "support/targets.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using test::expect_invalid;

constexpr std::int64_t kBatch = 2, kSeqQ = 3, kSeqK = 4, kHeads = 4, kHeadsKv = 2, kDimQk = 8, kDimV = 6;
constexpr float kUntouched = -77.0F;

Problem whole_problem() {
  Problem problem;
  problem.batch = kBatch;
  problem.seq_q = kSeqQ;
  problem.seq_k = kSeqK;
  problem.heads_q = kHeads;
  problem.heads_kv = kHeadsKv;
  problem.dim_qk = kDimQk;
  problem.dim_v = kDimV;
  problem.alibi = true;
  problem.sinks = true;
  problem.bias_shape = {{1, kHeads, kSeqQ, kSeqK}};
  return problem;
}

class RunErrors : public testing::Test {
 protected:
  float* fresh(float value) {
    buffers_.emplace_back(2048, value);
    return buffers_.back().data();
  }
  TensorView input(std::initializer_list<std::int64_t> shape) { return {fresh(0.5F), DType::float32, shape}; }
  TensorView output(std::initializer_list<std::int64_t> shape) {
    outputs_.push_back(fresh(kUntouched));
    return {outputs_.back(), DType::float32, shape};
  }

  ForwardTensors forward() {
    ForwardTensors tensors;
    tensors.q = input({kBatch, kSeqQ, kHeads, kDimQk});
    tensors.k = input({kBatch, kSeqK, kHeadsKv, kDimQk});
    tensors.v = input({kBatch, kSeqK, kHeadsKv, kDimV});
    tensors.out = output({kBatch, kSeqQ, kHeads, kDimV});
    tensors.lse = output({kBatch, kHeads, kSeqQ});
    tensors.score = score();
    return tensors;
  }

  BackwardTensors backward() {
    BackwardTensors tensors;
    tensors.q = input({kBatch, kSeqQ, kHeads, kDimQk});
    tensors.k = input({kBatch, kSeqK, kHeadsKv, kDimQk});
    tensors.v = input({kBatch, kSeqK, kHeadsKv, kDimV});
    tensors.out = input({kBatch, kSeqQ, kHeads, kDimV});
    tensors.lse = input({kBatch, kHeads, kSeqQ});
    tensors.dout = input({kBatch, kSeqQ, kHeads, kDimV});
    tensors.dlse = input({kBatch, kHeads, kSeqQ});
    tensors.dq = output({kBatch, kSeqQ, kHeads, kDimQk});
    tensors.dk = output({kBatch, kSeqK, kHeadsKv, kDimQk});
    tensors.dv = output({kBatch, kSeqK, kHeadsKv, kDimV});
    tensors.dbias = output({1, kHeads, kSeqQ, kSeqK});
    tensors.dsinks = output({kHeads});
    tensors.score = score();
    return tensors;
  }

  ScoreTensors score() { return {input({1, kHeads, kSeqQ, kSeqK}), input({kHeads}), input({kHeads})}; }

  template <class Tensors>
  void expect_refused(const Problem& problem, const Tensors& tensors, std::initializer_list<std::string_view> parts) {
    const Pass pass = std::is_same_v<Tensors, ForwardTensors> ? Pass::forward : Pass::backward;
    const Plan plan = Plan::make(problem, pass);
    expect_invalid(parts, [&] { plan.run(tensors); });
    for (const float* output : outputs_) EXPECT_EQ(output[0], kUntouched) << "written in spite of the refusal";
  }
  void refused_forward(const std::function<void(ForwardTensors&)>& change,
                       std::initializer_list<std::string_view> parts) {
    ForwardTensors tensors = forward();
    change(tensors);
    expect_refused(whole_problem(), tensors, parts);
  }
  void refused_backward(const std::function<void(BackwardTensors&)>& change,
                        std::initializer_list<std::string_view> parts) {
    BackwardTensors tensors = backward();
    change(tensors);
    expect_refused(whole_problem(), tensors, parts);
  }

 private:
  std::vector<std::vector<float>> buffers_;
  std::vector<float*> outputs_;
};

TEST_F(RunErrors, TheTensorsOfTheFixtureAreAccepted) {
  EXPECT_NO_THROW(attention_forward(whole_problem(), forward()));
  EXPECT_NO_THROW(attention_backward(whole_problem(), backward()));
}

TEST_F(RunErrors, OutputsInTheMemoryOfOtherTensors) {
  refused_forward([](ForwardTensors& t) { t.q.data = t.out.data; }, {"out", "the memory of q", "memory of its own"});
  refused_backward([](BackwardTensors& t) { t.dk.data = t.dq.data; }, {"dk", "the memory of dq", "memory of its own"});
  refused_backward([](BackwardTensors& t) { t.dout.data = t.dv.data; }, {"dv", "the memory of dout"});
}

TEST_F(RunErrors, AbsentTensors) {
  refused_forward([](auto& t) { t.q = {}; }, {"q", "absent", "float32[2, 3, 4, 8]"});
  refused_forward([](auto& t) { t.k = {}; }, {"k", "absent", "float32[2, 4, 2, 8]"});
  refused_forward([](auto& t) { t.v = {}; }, {"v", "absent", "float32[2, 4, 2, 6]"});
  refused_forward([](auto& t) { t.out = {}; }, {"out", "absent", "float32[2, 3, 4, 6]"});
  refused_forward([](auto& t) { t.score.bias = {}; }, {"bias", "absent", "[1, 4, 3, 4]"});
  refused_forward([](auto& t) { t.score.alibi_slopes = {}; }, {"alibi_slopes", "absent", "[4]"});
  refused_forward([](auto& t) { t.score.sinks = {}; }, {"sinks", "absent", "[4]"});
  refused_backward([](auto& t) { t.lse = {}; }, {"lse", "absent", "float32[2, 4, 3]"});
  refused_backward([](auto& t) { t.dout = {}; }, {"dout", "absent", "[2, 3, 4, 6]"});
  refused_backward([](auto& t) { t.dq = {}; }, {"dq", "absent", "[2, 3, 4, 8]"});
  refused_backward([](auto& t) { t.dk = {}; }, {"dk", "absent", "[2, 4, 2, 8]"});
  refused_backward([](auto& t) { t.dv = {}; }, {"dv", "absent", "[2, 4, 2, 6]"});
}

TEST_F(RunErrors, WrongShapes) {
  refused_forward([&](auto& t) { t.q = input({kBatch, kSeqQ, kHeads, 7}); }, {"q", "[2, 3, 4, 7]", "[2, 3, 4, 8]"});
  refused_forward([&](auto& t) { t.k = input({kBatch, kSeqQ, kHeadsKv, kDimQk}); },
                  {"k", "[2, 3, 2, 8]", "[2, 4, 2, 8]"});
  refused_forward([&](auto& t) { t.v = input({kBatch, kSeqK, kHeads, kDimV}); }, {"v", "[2, 4, 4, 6]", "[2, 4, 2, 6]"});
  refused_forward([&](auto& t) { t.q = input({6, kHeads, kDimQk}); }, {"q", "[6, 4, 8]", "[2, 3, 4, 8]"});
  refused_forward([&](auto& t) { t.lse = output({kBatch, kSeqQ, kHeads}); }, {"lse", "[2, 3, 4]", "[2, 4, 3]"});
  refused_forward([&](auto& t) { t.score.bias = input({kBatch, kHeads, kSeqQ, kSeqK}); },
                  {"bias", "[2, 4, 3, 4]", "[1, 4, 3, 4]"});
  refused_forward([&](auto& t) { t.score.alibi_slopes = input({3, kHeads}); }, {"alibi_slopes", "[3, 4]", "[2, 4]"});
  refused_forward([&](auto& t) { t.score.sinks = input({3}); }, {"sinks", "[3]", "[4]"});
  refused_backward([&](auto& t) { t.dlse = input({kHeads, kSeqQ}); }, {"dlse", "[4, 3]", "[2, 4, 3]"});
  refused_backward([&](auto& t) { t.dk = output({kBatch, kSeqK, kHeads, kDimQk}); },
                   {"dk", "[2, 4, 4, 8]", "[2, 4, 2, 8]"});
  refused_backward([&](auto& t) { t.dbias = output({1, 2, kSeqQ, kSeqK}); }, {"dbias", "[1, 2, 3, 4]", "[2, 4, 3, 4]"});
  refused_backward([&](auto& t) { t.dbias = output({kHeads, kSeqQ, kSeqK}); }, {"dbias", "[4, 3, 4]", "4 dimensions"});
  refused_backward([&](auto& t) { t.dsinks = output({1, kHeads}); }, {"dsinks", "[1, 4]", "[4]"});
}

TEST_F(RunErrors, WrongDtypes) {
  refused_forward([](auto& t) { t.q.dtype = DType::bfloat16; }, {"q dtype", "bfloat16", "float32"});
  refused_forward([](auto& t) { t.out.dtype = DType::float16; }, {"out dtype", "float16", "float32"});
  refused_forward([](auto& t) { t.lse.dtype = DType::float64; }, {"lse dtype", "float64", "float32"});
  refused_forward([](auto& t) { t.score.bias.dtype = DType::float16; }, {"bias dtype", "float16", "float32"});
  refused_forward([](auto& t) { t.score.sinks.dtype = DType::float64; }, {"sinks dtype", "float64", "float32"});
  refused_backward([](auto& t) { t.dv.dtype = DType::bfloat16; }, {"dv dtype", "bfloat16", "float32"});
  refused_backward([](auto& t) { t.dbias.dtype = DType::float16; }, {"dbias dtype", "float16", "float32"});
}

TEST_F(RunErrors, WrongStridesAndPointers) {
  refused_forward([](auto& t) { t.q.strides = {96, 32, 8, 2}; }, {"q", "stride", "last", "2", "1"});
  refused_forward([](auto& t) { t.out.strides[1] = 0; }, {"out", "stride", "0"});
  refused_forward([](auto& t) { t.v.data = nullptr; }, {"v data", "null"});
  refused_backward([](auto& t) { t.dk.strides[3] = 4; }, {"dk", "stride", "4", "1"});
  refused_backward([](auto& t) { t.dbias.strides[2] = 0; }, {"dbias", "stride", "0"});
}

TEST_F(RunErrors, WrongDevices) {
  refused_forward([](auto& t) { t.k.device = {DeviceKind::cuda, 0}; }, {"k device", "cuda:0", "cpu"});
  refused_backward([](auto& t) { t.dq.device = {DeviceKind::cuda, 1}; }, {"dq device", "cuda:1", "cpu"});
}

TEST_F(RunErrors, TensorsThatTheProblemDoesNotHave) {
  const auto plain = [](auto change) {
    Problem problem = whole_problem();
    change(problem);
    return problem;
  };
  expect_refused(plain([](Problem& p) { p.bias_shape.reset(); }), forward(), {"bias", "[1, 4, 3, 4]", "absent"});
  expect_refused(plain([](Problem& p) { p.alibi = false; }), forward(), {"alibi_slopes", "[4]", "absent"});
  expect_refused(plain([](Problem& p) { p.sinks = false; }), forward(), {"sinks", "[4]", "absent"});
  BackwardTensors tensors = backward();
  tensors.score.sinks = {};
  expect_refused(plain([](Problem& p) { p.sinks = false; }), tensors, {"dsinks", "[4]", "absent"});
  tensors = backward();
  tensors.score.bias = {};
  expect_refused(plain([](Problem& p) { p.bias_shape.reset(); }), tensors, {"dbias", "[1, 4, 3, 4]", "absent"});
}

TEST_F(RunErrors, RaggedTensorsHaveThreeDimensions) {
  Problem problem = whole_problem();
  problem.alibi = problem.sinks = false;
  problem.bias_shape.reset();
  set_ragged(problem, {0, 2, 5}, {0, 3, 7});
  ForwardTensors tensors;
  tensors.q = input({5, kHeads, kDimQk});
  tensors.k = input({7, kHeadsKv, kDimQk});
  tensors.v = input({8, kHeadsKv, kDimV});
  tensors.out = output({5, kHeads, kDimV});
  expect_refused(problem, tensors, {"v", "[8, 2, 6]", "[7, 2, 6]"});
  tensors.v = input({7, kHeadsKv, kDimV});
  tensors.lse = output({1, kHeads, 5});
  expect_refused(problem, tensors, {"lse", "[1, 4, 5]", "[4, 5]"});
}

TEST_F(RunErrors, TensorsOfTheOtherPass) {
  const Plan forward_plan = Plan::make(whole_problem(), Pass::forward);
  const Plan backward_plan = Plan::make(whole_problem(), Pass::backward);
  expect_invalid({"backward", "forward"}, [&] { forward_plan.run(backward()); });
  expect_invalid({"forward", "backward"}, [&] { backward_plan.run(forward()); });
}

TEST_F(RunErrors, WorkspaceThatIsTooSmallOrMisaligned) {
  bool checked = false;
  for (const std::string& impl : test::cpu_impls()) {
    PlanOptions options;
    options.impl = impl;
    const Plan plan = Plan::make(whole_problem(), Pass::backward, options);
    const auto needed = static_cast<std::size_t>(plan.workspace_bytes());
    if (needed == 0) continue;
    checked = true;
    std::vector<std::byte> memory(needed + 2 * kWorkspaceAlignment);
    void* start = memory.data();
    std::size_t space = memory.size();
    ASSERT_NE(std::align(kWorkspaceAlignment, needed + 1, start, space), nullptr);
    auto* aligned = static_cast<std::byte*>(start);
    expect_invalid({"workspace", std::to_string(needed - 1), std::to_string(needed)},
                   [&] { plan.run(backward(), {aligned, needed - 1}); });
    expect_invalid({"workspace", "1 bytes past", "multiples of 64"},
                   [&] { plan.run(backward(), {aligned + 1, needed}); });
    EXPECT_NO_THROW(plan.run(backward(), {aligned, needed}));
  }
  EXPECT_TRUE(checked) << "no Impl needs a workspace";
}

}  // namespace
}  // namespace tessera
