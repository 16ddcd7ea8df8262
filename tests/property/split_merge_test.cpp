// Splitting the keys and merging the parts is the whole, forward and, through the gradient of LSE, backward.
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "support/targets.h"
#include "support/tensor_ops.h"
#include "tessera/attention.h"

namespace tessera {
namespace {

using cli::HostTensor;
using cli::ProblemTensors;
using cli::TensorOptions;
using test::slice;
using test::Target;
using test::Values;

constexpr std::int64_t kSeqQ = 37, kSeqK = 150, kHeads = 4, kDimQk = 24, kDimV = 20;
constexpr double kTolerance = 4e-6;

struct Case {
  std::string name;
  Problem problem;
  std::vector<std::int64_t> cuts;  // 0, ..., kSeqK
};

void PrintTo(const Case& row, std::ostream* out) { *out << row.problem.describe(); }

Case make_case(std::string name, std::vector<std::int64_t> cuts, void (*change)(Problem&)) {
  Case result{std::move(name), {}, std::move(cuts)};
  Problem& problem = result.problem;
  problem.batch = 2;
  problem.seq_q = kSeqQ;
  problem.seq_k = kSeqK;
  problem.heads_q = kHeads;
  problem.heads_kv = 2;
  problem.dim_qk = kDimQk;
  problem.dim_v = kDimV;
  change(problem);
  return result;
}

std::vector<Case> cases() {
  return {
      make_case("dense", {0, 70, 150}, [](Problem&) {}),
      make_case("one_key_parts", {0, 1, 149, 150}, [](Problem&) {}),
      make_case("empty_part", {0, 0, 64, 150}, [](Problem&) {}),
      make_case("causal", {0, 50, 130, 150}, [](Problem& p) { p.mask = Mask::causal(); }),
      make_case("parts_that_some_rows_do_not_see", {0, 20, 60, 150},
                [](Problem& p) { p.mask = Mask::window(9, 3, Alignment::top_left()); }),
      make_case("alibi_softcap", {0, 33, 150},
                [](Problem& p) {
                  p.alibi = true;
                  p.softcap = 3.0F;
                }),
      make_case("bias", {0, 65, 150}, [](Problem& p) { p.bias_shape = {{1, kHeads, kSeqQ, kSeqK}}; }),
      make_case("dropout", {0, 65, 150}, [](Problem& p) { p.dropout = {0.3, 17, 5, 9, 0, 0}; }),
  };
}

// The part of the problem that holds the keys [begin, end): the same positions, in its own coordinates.
Problem part_of(const Problem& whole, std::int64_t begin, std::int64_t end) {
  Problem part = whole;
  part.seq_k = end - begin;
  part.mask =
      whole.mask.with_alignment(Alignment::at(whole.mask.alignment().resolve(whole.seq_q, whole.seq_k) - begin));
  part.dropout.key_start += begin;
  if (part.bias_shape) (*part.bias_shape)[3] = end - begin;
  return part;
}

ScoreTensors score_of_part(ScoreTensors score, std::int64_t begin, std::int64_t end) {
  if (!score.bias.absent()) score.bias = slice(score.bias, 3, begin, end - begin);
  return score;
}

// (O, LSE) of the parts with their gradients.
struct Part {
  std::int64_t begin, end;
  Problem problem;
  HostTensor out, lse, dout, dlse, dq;
};

HostTensor like(const HostTensor& tensor) {
  const TensorView& view = tensor.view();
  return {view.dtype, std::span(view.shape).first(static_cast<std::size_t>(view.rank))};
}

Part forward_of_part(const ProblemTensors& whole, std::int64_t begin, std::int64_t end, const Target& target) {
  Part part{begin,
            end,
            part_of(whole.problem(), begin, end),
            like(whole.out),
            like(whole.lse),
            like(whole.dout),
            like(whole.lse),
            like(whole.dq)};
  const ForwardTensors all = whole.forward();
  ForwardTensors tensors;
  tensors.q = all.q;
  tensors.k = slice(all.k, 1, begin, end - begin);
  tensors.v = slice(all.v, 1, begin, end - begin);
  tensors.out = part.out.view();
  tensors.lse = part.lse.view();
  tensors.score = score_of_part(all.score, begin, end);
  test::make_plan(part.problem, Pass::forward, target).run(tensors);
  return part;
}

// Gradients of O = sum_p w_p O_p and LSE = log sum_p exp(LSE_p) with w_p = exp(LSE_p - LSE):
// dO_p = w_p dO and dLSE_p = w_p (dO . (O_p - O) + dLSE).
void set_part_gradients(const ProblemTensors& whole, Part& part) {
  const Values out = whole.out.values(), lse = whole.lse.values(), dout = whole.dout.values(),
               dlse = whole.dlse.values();
  const Values part_out = part.out.values(), part_lse = part.lse.values();
  Values part_dout(dout.size()), part_dlse(dlse.size());
  for (std::int64_t row = 0; row < 2 * kSeqQ * kHeads; ++row) {
    const std::int64_t b = row / (kSeqQ * kHeads), i = row / kHeads % kSeqQ, h = row % kHeads;
    const auto line = static_cast<std::size_t>((b * kHeads + h) * kSeqQ + i);
    const double weight = std::isfinite(part_lse[line]) ? std::exp(part_lse[line] - lse[line]) : 0.0;
    double gradient = dlse[line];
    for (std::int64_t d = 0; d < kDimV; ++d) {
      const auto n = static_cast<std::size_t>(row * kDimV + d);
      part_dout[n] = weight * dout[n];
      gradient += dout[n] * (part_out[n] - out[n]);
    }
    part_dlse[line] = weight * gradient;
  }
  test::assign(part.dout, part_dout);
  test::assign(part.dlse, part_dlse);
}

// dK and dV go straight into the whole's rows; dQ and dbias are the part's own.
void backward_of_part(const ProblemTensors& whole, Part& part, const Target& target, HostTensor& dbias) {
  const BackwardTensors all = whole.backward();
  const std::int64_t count = part.end - part.begin;
  BackwardTensors tensors = all;
  tensors.k = slice(all.k, 1, part.begin, count);
  tensors.v = slice(all.v, 1, part.begin, count);
  tensors.out = part.out.const_view();
  tensors.lse = part.lse.const_view();
  tensors.dout = part.dout.const_view();
  tensors.dlse = part.dlse.const_view();
  tensors.dq = part.dq.view();
  tensors.dk = slice(all.dk, 1, part.begin, count);
  tensors.dv = slice(all.dv, 1, part.begin, count);
  tensors.score = score_of_part(all.score, part.begin, part.end);
  if (!dbias.absent()) tensors.dbias = slice(dbias.view(), 3, part.begin, count);
  test::make_plan(part.problem, Pass::backward, target).run(tensors);
}

class SplitMerge : public testing::TestWithParam<Case> {};

TEST_P(SplitMerge, PartsMakeTheWhole) {
  TensorOptions options;
  options.seed = 5;
  options.dlse = true;
  for (const Target& target : test::all_targets()) {
    SCOPED_TRACE(target.name());
    ProblemTensors whole(GetParam().problem, options);
    test::run_both(whole, target.options());
    const Values out = whole.out.values(), lse = whole.lse.values(), dq = whole.dq.values(), dk = whole.dk.values(),
                 dv = whole.dv.values(), dbias = whole.dbias.values();

    std::vector<Part> parts;
    for (std::size_t n = 0; n + 1 < GetParam().cuts.size(); ++n) {
      parts.push_back(forward_of_part(whole, GetParam().cuts[n], GetParam().cuts[n + 1], target));
    }
    HostTensor merged_out = like(whole.out), merged_lse = like(whole.lse);
    test::assign(merged_out, Values(out.size(), 0.0));
    test::assign(merged_lse, Values(lse.size(), -std::numeric_limits<double>::infinity()));
    for (const Part& part : parts) {
      merge({merged_out.const_view(), merged_lse.const_view()}, {part.out.const_view(), part.lse.const_view()},
            {merged_out.view(), merged_lse.view()});
    }
    EXPECT_LE(test::relative_error(merged_out.values(), out), kTolerance) << "O";
    EXPECT_LE(test::relative_error(merged_lse.values(), lse), kTolerance) << "LSE";

    whole.dk.poison();
    whole.dv.poison();
    HostTensor parts_dbias = whole.dbias.absent() ? HostTensor() : like(whole.dbias);
    Values sum_dq(dq.size(), 0.0);
    for (Part& part : parts) {
      set_part_gradients(whole, part);
      backward_of_part(whole, part, target, parts_dbias);
      const Values part_dq = part.dq.values();
      for (std::size_t n = 0; n < dq.size(); ++n) sum_dq[n] += part_dq[n];
    }
    EXPECT_LE(test::relative_error(sum_dq, dq), kTolerance) << "dQ";
    EXPECT_LE(test::relative_error(whole.dk.values(), dk), kTolerance) << "dK";
    EXPECT_LE(test::relative_error(whole.dv.values(), dv), kTolerance) << "dV";
    if (!whole.dbias.absent()) {
      EXPECT_LE(test::relative_error(parts_dbias.values(), dbias), kTolerance) << "dbias";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, SplitMerge, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera
