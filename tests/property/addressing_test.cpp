// Tensors whose elements lie more than 2^31 elements apart: the memory is reserved, and a few pages of it are touched.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::HostTensor;
using cli::ProblemTensors;
using test::Target;
using test::Values;

// Address space without memory behind it until it is touched.
class Reservation {
 public:
  explicit Reservation(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() {
    if (valid()) munmap(data_, bytes_);
  }
  bool valid() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_;
};

// Lays the tensors of one problem out so that `axis` has a stride beyond 2^31 elements, one after another in `memory`.
class FarTensors {
 public:
  static constexpr std::int64_t kFarStride = (std::int64_t{1} << 31) + 12345;

  FarTensors(void* memory, int axis) : next_(static_cast<char*>(memory)), axis_(static_cast<std::size_t>(axis)) {}

  // The same elements as `tensor`, far apart.
  TensorView place(const HostTensor& tensor) {
    const TensorView near = tensor.view();
    TensorView far = near;
    far.data = next_;
    std::int64_t stride = 1;
    for (auto axis = static_cast<std::size_t>(near.rank); axis-- > 0;) {
      far.strides[axis] = axis == axis_ ? kFarStride : stride;
      stride *= axis == axis_ ? 1 : near.shape[axis];
    }
    next_ += (stride * dtype_bytes(near.dtype) + 63) / 64 * 64;
    copy(near, far);
    return far;
  }

  static void copy(const TensorView& from, const TensorView& to) {
    const auto bytes = static_cast<std::size_t>(dtype_bytes(from.dtype));
    std::array<std::int64_t, 4> shape = {1, 1, 1, 1};
    for (int axis = 0; axis < from.rank; ++axis)
      shape[static_cast<std::size_t>(axis)] = from.shape[static_cast<std::size_t>(axis)];
    for (std::int64_t a = 0; a < shape[0]; ++a) {
      for (std::int64_t b = 0; b < shape[1]; ++b) {
        for (std::int64_t c = 0; c < shape[2]; ++c) {
          for (std::int64_t d = 0; d < shape[3]; ++d) {
            const auto offset = [&](const TensorView& view) {
              return (a * view.strides[0] + b * view.strides[1] + c * view.strides[2] + d * view.strides[3]) *
                     static_cast<std::int64_t>(bytes);
            };
            std::copy_n(static_cast<const char*>(from.data) + offset(from), bytes,
                        static_cast<char*>(to.data) + offset(to));
          }
        }
      }
    }
  }

 private:
  char* next_;
  std::size_t axis_;
};

// The axis of a [batch, seq, heads, dim] tensor that is far apart; of LSE the one with the same meaning.
class Addressing : public testing::TestWithParam<int> {};

TEST_P(Addressing, ElementsBeyondThirtyTwoBits) {
  const int axis = GetParam();
  const int lse_axis = axis == 0 ? 0 : 3 - axis;
  Problem problem;
  problem.batch = problem.seq_q = problem.seq_k = problem.heads_q = problem.heads_kv = 3;
  problem.dim_qk = problem.dim_v = 8;
  problem.mask = Mask::causal();
  const auto bytes = static_cast<std::size_t>(4 * (2 * FarTensors::kFarStride) + (1 << 20));
  const Reservation memory(bytes);
  ASSERT_TRUE(memory.valid()) << "no " << bytes << " bytes of address space";
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors near(problem, {});
    const test::Outputs expected = test::run_both(near, target.options());

    ProblemTensors result(problem, {});
    FarTensors layout(memory.data(), axis);
    FarTensors lse_layout(static_cast<char*>(memory.data()) + (1 << 19), lse_axis);
    BackwardTensors far;
    far.q = layout.place(near.q);
    far.k = layout.place(near.k);
    far.v = layout.place(near.v);
    far.dout = layout.place(near.dout);
    const TensorView out = layout.place(result.out), lse = lse_layout.place(result.lse);
    far.dq = layout.place(result.dq);
    far.dk = layout.place(result.dk);
    far.dv = layout.place(result.dv);
    test::make_plan(problem, Pass::forward, target).run(ForwardTensors{far.q, far.k, far.v, out, lse, {}});
    far.out = out;
    far.lse = lse;
    test::make_plan(problem, Pass::backward, target).run(far);

    FarTensors::copy(out, result.out.view());
    FarTensors::copy(lse, result.lse.view());
    FarTensors::copy(far.dq, result.dq.view());
    FarTensors::copy(far.dk, result.dk.view());
    FarTensors::copy(far.dv, result.dv.view());
    test::Outputs actual = test::outputs_of(result, Pass::forward);
    for (test::NamedValues& output : test::outputs_of(result, Pass::backward)) actual.push_back(std::move(output));
    EXPECT_TRUE(test::bitwise_equal(actual, expected));
  }
}

INSTANTIATE_TEST_SUITE_P(Axes, Addressing, testing::Values(0, 1, 2), [](const auto& info) {
  return std::string(info.param == 0 ? "batch" : info.param == 1 ? "sequence" : "heads");
});

}  // namespace
}  // namespace tessera
