// What must not change a result: memory layout, other rows, other sequences, other heads, the order of the keys, and how
// a problem is cut into sequences.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "support/targets.h"
#include "support/tensor_ops.h"

namespace tessera {
namespace {

using cli::ProblemTensors;
using cli::StrideKind;
using cli::TensorOptions;
using test::Outputs;
using test::slice;
using test::Target;
using test::Values;

constexpr std::int64_t kSeqQ = 70, kSeqK = 140;
constexpr double kTolerance = 4e-6;

Problem make_problem(const Mask& mask) {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = kSeqQ;
  problem.seq_k = kSeqK;
  problem.heads_q = 4;
  problem.heads_kv = 2;
  problem.dim_qk = 24;
  problem.dim_v = 20;
  problem.mask = mask;
  return problem;
}

TensorOptions seeded(std::uint64_t seed) {
  TensorOptions options;
  options.seed = seed;
  options.dlse = true;
  return options;
}

class Invariance : public testing::TestWithParam<Mask> {
 protected:
  const Problem problem_ = make_problem(GetParam());
};

TEST_P(Invariance, StridesDoNotMatter) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    Problem problem = problem_;
    problem.dtype = dtype;
    problem.bias_shape = {{1, 4, kSeqQ, kSeqK}};
    for (const Target& target : test::all_targets()) {
      SCOPED_TRACE(target.name() + " " + std::string(dtype_name(dtype)));
      TensorOptions options = seeded(1);
      ProblemTensors packed(problem, options);
      const Outputs expected = test::run_both(packed, target.options());
      for (const std::optional<StrideKind> strides :
           {std::optional(StrideKind::heads_first), std::optional(StrideKind::padded), std::optional<StrideKind>()}) {
        options.strides = strides;
        ProblemTensors tensors(problem, options);
        EXPECT_TRUE(test::bitwise_equal(expected, test::run_both(tensors, target.options())));
      }
    }
  }
}

// Elements of `values`, a [batch, seq, heads, dim] tensor, for which `pick(batch, row, head)` holds.
template <class Pick>
Values picked(const cli::HostTensor& tensor, Pick pick) {
  const auto& shape = tensor.view().shape;
  const Values all = tensor.values();
  Values result;
  for (std::size_t n = 0; n < all.size(); ++n) {
    const auto token = static_cast<std::int64_t>(n) / shape[3];
    if (pick(token / (shape[1] * shape[2]), token / shape[2] % shape[1], token % shape[2])) result.push_back(all[n]);
  }
  return result;
}

// Replaces those elements by those of `source`.
template <class Pick>
void replace(cli::HostTensor& tensor, const cli::HostTensor& source, Pick pick) {
  const auto& shape = tensor.view().shape;
  Values all = tensor.values();
  const Values other = source.values();
  for (std::size_t n = 0; n < all.size(); ++n) {
    const auto token = static_cast<std::int64_t>(n) / shape[3];
    if (pick(token / (shape[1] * shape[2]), token / shape[2] % shape[1], token % shape[2])) all[n] = other[n];
  }
  test::assign(tensor, all);
}

TEST_P(Invariance, AQueryChangesItsOwnRowAlone) {
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors before(problem_, seeded(2)), after(problem_, seeded(2)), other(problem_, seeded(3));
    const auto changed = [](auto, auto row, auto) { return row == 33; };
    const auto same = [](auto, auto row, auto) { return row != 33; };
    replace(after.q, other.q, changed);
    replace(after.dout, other.dout, changed);
    test::run_both(before, target.options());
    test::run_both(after, target.options());
    EXPECT_TRUE(test::bitwise_equal(picked(before.out, same), picked(after.out, same)));
    EXPECT_TRUE(test::bitwise_equal(picked(before.dq, same), picked(after.dq, same)));
    EXPECT_FALSE(test::bitwise_equal(picked(before.out, changed), picked(after.out, changed)));
    EXPECT_FALSE(test::bitwise_equal(picked(before.dq, changed), picked(after.dq, changed)));
  }
}

TEST_P(Invariance, SequencesAreIndependent) {
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors before(problem_, seeded(2)), after(problem_, seeded(2)), other(problem_, seeded(3));
    const auto second = [](auto batch, auto, auto) { return batch == 1; };
    const auto first = [](auto batch, auto, auto) { return batch == 0; };
    for (auto tensor : {&ProblemTensors::q, &ProblemTensors::k, &ProblemTensors::v, &ProblemTensors::dout}) {
      replace(after.*tensor, other.*tensor, second);
    }
    test::run_both(before, target.options());
    test::run_both(after, target.options());
    for (auto tensor : {&ProblemTensors::out, &ProblemTensors::dq, &ProblemTensors::dk, &ProblemTensors::dv}) {
      EXPECT_TRUE(test::bitwise_equal(picked(before.*tensor, first), picked(after.*tensor, first)));
      EXPECT_FALSE(test::bitwise_equal(picked(before.*tensor, second), picked(after.*tensor, second)));
    }
  }
}

TEST_P(Invariance, HeadsAreIndependent) {
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors before(problem_, seeded(2)), after(problem_, seeded(2)), other(problem_, seeded(3));
    const auto second_kv = [](auto, auto, auto head) { return head == 1; };
    const auto first_kv = [](auto, auto, auto head) { return head == 0; };
    const auto first_group = [](auto, auto, auto head) { return head < 2; };
    replace(after.k, other.k, second_kv);
    replace(after.v, other.v, second_kv);
    test::run_both(before, target.options());
    test::run_both(after, target.options());
    EXPECT_TRUE(test::bitwise_equal(picked(before.out, first_group), picked(after.out, first_group)));
    EXPECT_TRUE(test::bitwise_equal(picked(before.dq, first_group), picked(after.dq, first_group)));
    EXPECT_TRUE(test::bitwise_equal(picked(before.dk, first_kv), picked(after.dk, first_kv)));
    EXPECT_TRUE(test::bitwise_equal(picked(before.dv, first_kv), picked(after.dv, first_kv)));
    EXPECT_FALSE(test::bitwise_equal(before.out.values(), after.out.values()));
  }
}

// The queries [begin, end) alone, at their own positions, give their own rows; their dK and dV add up to the whole's.
TEST_P(Invariance, QueriesCanBeComputedInParts) {
  Problem problem = problem_;
  problem.dropout = {0.2, 6, 0, 0, 0, 0};
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors whole(problem, seeded(4)), parts(problem, seeded(4));
    test::run_both(whole, target.options());
    Values dk(whole.dk.values().size(), 0.0), dv(whole.dv.values().size(), 0.0);
    for (const Range rows : {Range{0, 1}, Range{1, 50}, Range{50, kSeqQ}}) {
      Problem part = problem;
      part.seq_q = rows.size();
      part.mask =
          problem.mask.with_alignment(Alignment::at(problem.mask.alignment().resolve(kSeqQ, kSeqK) + rows.begin));
      part.dropout.query_start = rows.begin;
      ForwardTensors forward = parts.forward();
      BackwardTensors backward = parts.backward();
      const auto cut = [&](auto& view, int axis) { view = slice(view, axis, rows.begin, rows.size()); };
      cut(forward.q, 1), cut(forward.out, 1), cut(forward.lse, 2);
      for (ConstTensorView* view : {&backward.q, &backward.out, &backward.dout}) cut(*view, 1);
      cut(backward.dq, 1), cut(backward.lse, 2), cut(backward.dlse, 2);
      test::make_plan(part, Pass::forward, target).run(forward);
      test::make_plan(part, Pass::backward, target).run(backward);
      const Values part_dk = parts.dk.values(), part_dv = parts.dv.values();
      for (std::size_t n = 0; n < dk.size(); ++n) dk[n] += part_dk[n];
      for (std::size_t n = 0; n < dv.size(); ++n) dv[n] += part_dv[n];
    }
    EXPECT_LE(test::relative_error(parts.out.values(), whole.out.values()), kTolerance);
    EXPECT_LE(test::relative_error(parts.lse.values(), whole.lse.values()), kTolerance);
    EXPECT_LE(test::relative_error(parts.dq.values(), whole.dq.values()), kTolerance);
    EXPECT_LE(test::relative_error(dk, whole.dk.values()), kTolerance);
    EXPECT_LE(test::relative_error(dv, whole.dv.values()), kTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Masks, Invariance,
                         testing::Values(Mask::none(), Mask::causal(), Mask::window(30, 7, Alignment::at(40))),
                         [](const auto& info) {
                           return std::string(info.index == 0 ? "none" : info.index == 1 ? "causal" : "window");
                         });

// Rows of a [batch, rows, heads, dim] list in another order.
Values permute_rows(const Values& values, const std::vector<std::size_t>& order, std::size_t row_size) {
  Values result(values.size());
  const std::size_t rows = order.size();
  for (std::size_t n = 0; n < values.size() / row_size; ++n) {
    const std::size_t source = n / rows * rows + order[n % rows];
    std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(source * row_size), row_size,
                result.begin() + static_cast<std::ptrdiff_t>(n * row_size));
  }
  return result;
}

TEST(KeyOrder, PermutingTheKeysPermutesTheirGradientsAlone) {
  Problem problem = make_problem(Mask::none());
  problem.bias_shape = {{2, 1, 1, kSeqK}};
  problem.sinks = true;
  std::vector<std::size_t> order(kSeqK);
  std::iota(order.begin(), order.end(), 0U);
  for (std::size_t n = 0; n < order.size(); ++n) std::swap(order[n], order[n * 7919 % order.size()]);
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors plain(problem, seeded(5)), permuted(problem, seeded(5));
    test::assign(permuted.k, permute_rows(plain.k.values(), order, 2 * 24));
    test::assign(permuted.v, permute_rows(plain.v.values(), order, 2 * 20));
    test::assign(permuted.bias, permute_rows(plain.bias.values(), order, 1));
    test::run_both(plain, target.options());
    test::run_both(permuted, target.options());
    EXPECT_LE(test::relative_error(permuted.out.values(), plain.out.values()), kTolerance);
    EXPECT_LE(test::relative_error(permuted.lse.values(), plain.lse.values()), kTolerance);
    EXPECT_LE(test::relative_error(permuted.dq.values(), plain.dq.values()), kTolerance);
    EXPECT_LE(test::relative_error(permuted.dk.values(), permute_rows(plain.dk.values(), order, 2 * 24)), kTolerance);
    EXPECT_LE(test::relative_error(permuted.dv.values(), permute_rows(plain.dv.values(), order, 2 * 20)), kTolerance);
    EXPECT_LE(test::relative_error(permuted.dbias.values(), permute_rows(plain.dbias.values(), order, 1)), kTolerance);
    EXPECT_LE(test::relative_error(permuted.dsinks.values(), plain.dsinks.values()), kTolerance);
  }
}

// One row of tokens cut into documents in two ways: by segments in one sequence, and as ragged sequences.
TEST(Documents, SegmentsAndRaggedSequencesAgree) {
  const std::vector<std::int64_t> cuts_q = {0, 40, 41, 41, 90}, cuts_k = {0, 33, 60, 77, 150};
  for (const bool causal : {false, true}) {
    Problem ragged = make_problem(causal ? Mask::causal(Alignment::top_left()) : Mask::none());
    set_ragged(ragged, cuts_q, cuts_k);
    Problem packed = make_problem(Mask::none());
    packed.batch = 1;
    packed.seq_q = 90;
    packed.seq_k = 150;
    Segments ids;
    for (std::int32_t document = 0; document < 4; ++document) {
      const auto d = static_cast<std::size_t>(document);
      ids.query.insert(ids.query.end(), static_cast<std::size_t>(cuts_q[d + 1] - cuts_q[d]), document);
      ids.key.insert(ids.key.end(), static_cast<std::size_t>(cuts_k[d + 1] - cuts_k[d]), document);
    }
    packed.mask = Mask::segments(ids);
    if (causal) {
      // Causality within documents that start at different query and key positions is no band of the packed sequence.
      ragged.cu_seqlens_k = ragged.cu_seqlens_q;
      ragged.seq_k = ragged.seq_q;
      packed.seq_k = packed.seq_q;
      ids.key = ids.query;
      packed.mask = Mask::segments(ids) & Mask::causal();
    }
    for (const Target& target : test::all_targets()) {
      SCOPED_TRACE(target.name());
      ProblemTensors a(ragged, seeded(6)), b(packed, seeded(6));
      const Outputs from_ragged = test::run_both(a, target.options());
      const Outputs from_packed = test::run_both(b, target.options());
      for (std::size_t n = 0; n < from_ragged.size(); ++n) {
        EXPECT_LE(test::relative_error(from_ragged[n].values, from_packed[n].values), kTolerance)
            << from_ragged[n].name;
      }
    }
  }
}

}  // namespace
}  // namespace tessera
