// A NaN or an infinity in one row reaches exactly the rows that see it, forward and backward.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "support/mask_oracle.h"
#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::HostTensor;
using cli::ProblemTensors;
using cli::TensorOptions;
using test::Target;
using test::Values;

constexpr std::int64_t kSeqQ = 70, kSeqK = 135, kHeads = 4, kHeadsKv = 2, kDim = 24;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Setting {
  std::string name;
  Mask mask;
  DType dtype = DType::float32;
};

void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.mask.describe(); }

Segments documents() {
  Segments ids;
  for (std::int64_t i = 0; i < 2 * kSeqQ; ++i) ids.query.push_back(static_cast<std::int32_t>(i % kSeqQ / 25));
  for (std::int64_t j = 0; j < 2 * kSeqK; ++j) ids.key.push_back(static_cast<std::int32_t>(j % kSeqK / 40));
  return ids;
}

std::vector<Setting> settings() {
  return {{"dense", Mask::none()},
          {"causal", Mask::causal()},
          {"causal_bfloat16", Mask::causal(), DType::bfloat16},
          {"causal_top_left_float16", Mask::causal(Alignment::top_left()), DType::float16},
          {"window", Mask::window(20, 5)},
          {"segments", Mask::segments(documents())},
          {"segments_causal", Mask::segments(documents()) & Mask::causal(Alignment::top_left())}};
}

Problem problem_of(const Setting& setting) {
  Problem problem;
  problem.dtype = setting.dtype;
  problem.batch = 2;
  problem.seq_q = kSeqQ;
  problem.seq_k = kSeqK;
  problem.heads_q = kHeads;
  problem.heads_kv = kHeadsKv;
  problem.dim_qk = problem.dim_v = kDim;
  problem.mask = setting.mask;
  return problem;
}

// Sets one number of row (batch 1, row, head) of a [batch, seq, heads, dim] tensor.
void poke(HostTensor& tensor, std::int64_t row, std::int64_t head, double value) {
  const auto& shape = tensor.view().shape;
  Values values = tensor.values();
  values[static_cast<std::size_t>(((shape[1] + row) * shape[2] + head) * shape[3] + 7)] = value;
  test::assign(tensor, values);
}

using Expected = std::function<bool(std::int64_t row, std::int64_t head)>;
bool nowhere(std::int64_t, std::int64_t) { return false; }

// Whether exactly the rows of batch 1 that `expected` names hold a number that is not finite.
void expect_reach(const std::string& name, const HostTensor& tensor, const Expected& expected) {
  const TensorView& view = tensor.view();
  const bool is_lse = view.rank == 3;
  const std::int64_t rows = is_lse ? view.shape[2] : view.shape[1];
  const std::int64_t heads = is_lse ? view.shape[1] : view.shape[2];
  const std::int64_t dim = is_lse ? 1 : view.shape[3];
  const Values values = tensor.values();
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::int64_t token = is_lse ? (b * heads + head) * rows + row : (b * rows + row) * heads + head;
        bool reached = false;
        for (std::int64_t d = 0; d < dim; ++d) {
          const double value = values[static_cast<std::size_t>(token * dim + d)];
          // A row that sees nothing has -inf for its LSE, reached or not.
          reached = reached || (is_lse ? std::isnan(value) || value == kInf : !std::isfinite(value));
        }
        ASSERT_EQ(reached, b == 1 && expected(row, head))
            << name << " of sequence " << b << ", row " << row << ", head " << head;
      }
    }
  }
}

class Reach : public testing::TestWithParam<Setting> {
 protected:
  bool sees(std::int64_t query, std::int64_t key) const {
    return test::attends(problem_.mask, {kSeqQ, kSeqK, kSeqQ, kSeqK}, query, key);
  }
  // Whether any query that sees `through` sees `key` as well.
  bool linked(std::int64_t through, std::int64_t key) const {
    for (std::int64_t i = 0; i < kSeqQ; ++i) {
      if (sees(i, through) && sees(i, key)) return true;
    }
    return false;
  }
  bool sees_any(std::int64_t query) const {
    for (std::int64_t j = 0; j < kSeqK; ++j) {
      if (sees(query, j)) return true;
    }
    return false;
  }
  static bool in_group(std::int64_t head, std::int64_t head_kv) { return head / (kHeads / kHeadsKv) == head_kv; }

  // Runs both passes on every target after `change`, and checks which rows of each output it reached.
  struct Rows {
    Expected out = nowhere, lse = nowhere, dq = nowhere, dk = nowhere, dv = nowhere;
  };
  void check(const std::function<void(ProblemTensors&)>& change, const Rows& rows) const {
    for (const Target& target : test::all_targets()) {
      SCOPED_TRACE(target.name());
      TensorOptions options;
      options.seed = 8;
      ProblemTensors tensors(problem_, options);
      change(tensors);
      test::run_both(tensors, target.options());
      expect_reach("O", tensors.out, rows.out);
      expect_reach("LSE", tensors.lse, rows.lse);
      expect_reach("dQ", tensors.dq, rows.dq);
      expect_reach("dK", tensors.dk, rows.dk);
      expect_reach("dV", tensors.dv, rows.dv);
    }
  }

  const Problem problem_ = problem_of(GetParam());
};

TEST_P(Reach, NothingOfFiniteInputs) {
  check([](ProblemTensors&) {}, {});
}

TEST_P(Reach, KeyRow) {
  for (const std::int64_t key : {std::int64_t{0}, std::int64_t{66}, kSeqK - 1}) {
    const Expected rows = [=, this](std::int64_t i, std::int64_t head) { return in_group(head, 1) && sees(i, key); };
    const Expected keys = [=, this](std::int64_t j, std::int64_t head) { return head == 1 && linked(key, j); };
    check([&](ProblemTensors& t) { poke(t.k, key, 1, kNaN); }, {rows, rows, rows, keys, keys});
  }
}

// V does not enter the weights, so that LSE and dV stay finite.
TEST_P(Reach, ValueRow) {
  for (const std::int64_t key : {std::int64_t{0}, std::int64_t{66}, kSeqK - 1}) {
    const Expected rows = [=, this](std::int64_t i, std::int64_t head) { return in_group(head, 0) && sees(i, key); };
    const Expected keys = [=, this](std::int64_t j, std::int64_t head) { return head == 0 && linked(key, j); };
    for (const double value : {kNaN, kInf, -kInf}) {
      check([&](ProblemTensors& t) { poke(t.v, key, 0, value); }, {rows, nowhere, rows, keys, nowhere});
    }
  }
}

TEST_P(Reach, QueryRow) {
  for (const std::int64_t query : {std::int64_t{0}, std::int64_t{31}, kSeqQ - 1}) {
    const Expected rows = [=, this](std::int64_t i, std::int64_t head) {
      return i == query && head == 3 && sees_any(query);
    };
    const Expected keys = [=, this](std::int64_t j, std::int64_t head) { return head == 1 && sees(query, j); };
    check([&](ProblemTensors& t) { poke(t.q, query, 3, kNaN); }, {rows, rows, rows, keys, keys});
  }
}

TEST_P(Reach, OutputGradientRow) {
  for (const std::int64_t query : {std::int64_t{0}, std::int64_t{31}, kSeqQ - 1}) {
    const Expected rows = [=, this](std::int64_t i, std::int64_t head) {
      return i == query && head == 2 && sees_any(query);
    };
    const Expected keys = [=, this](std::int64_t j, std::int64_t head) { return head == 1 && sees(query, j); };
    for (const double value : {kNaN, kInf}) {
      check([&](ProblemTensors& t) { poke(t.dout, query, 2, value); }, {nowhere, nowhere, rows, keys, keys});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Masks, Reach, testing::ValuesIn(settings()), [](const auto& info) { return info.param.name; });

// Keys beyond a sequence's key length hold whatever memory held: nothing of it is seen, and their gradient is zero.
TEST(ReachOfPadding, KeysBeyondTheKeyLengthAreNeverSeen) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    Problem problem = problem_of({"", Mask::none(), dtype});
    problem.key_lengths = {kSeqK, 50};
    for (const Target& target : test::all_targets()) {
      SCOPED_TRACE(target.name());
      ProblemTensors tensors(problem, {});
      for (std::int64_t key = 50; key < kSeqK; ++key) {
        poke(tensors.k, key, 0, kNaN);
        poke(tensors.v, key, 0, kNaN);
      }
      test::run_both(tensors, target.options());
      for (const HostTensor* output : {&tensors.out, &tensors.lse, &tensors.dq, &tensors.dk, &tensors.dv}) {
        for (const double value : output->values()) ASSERT_TRUE(std::isfinite(value));
      }
      for (const HostTensor* gradient : {&tensors.dk, &tensors.dv}) {
        const Values values = gradient->values();
        for (std::size_t n = (kSeqK + 50) * kHeadsKv * kDim; n < values.size(); ++n) ASSERT_EQ(values[n], 0.0);
      }
    }
  }
}

}  // namespace
}  // namespace tessera
