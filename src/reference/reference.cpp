#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/half.h"
#include "function/native.h"

namespace tessera::internal {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Position {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t query;
  std::int64_t key;
};

double element_or(const ConstTensorView& view, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  std::size_t axis = 0;
  for (const std::int64_t i : index) {
    offset += i * view.strides[axis++];
  }
  return load_element(view.data, view.dtype, offset);
}

// Element `column` of token `row` of sequence `batch` and `head`.
std::int64_t offset_in(const ConstTensorView& view, const Problem& problem, std::int64_t batch, std::int64_t row,
                       std::int64_t head, bool query_side) {
  if (problem.ragged()) {
    const SequenceSpan span = problem.sequence(batch);
    return ((query_side ? span.query_row : span.key_row) + row) * view.strides[0] + head * view.strides[1];
  }
  return batch * view.strides[0] + row * view.strides[1] + head * view.strides[2];
}

std::int64_t line_offset(const ConstTensorView& view, const Problem& problem, std::int64_t batch, std::int64_t head,
                         std::int64_t row) {
  if (problem.ragged()) {
    return head * view.strides[0] + (problem.sequence(batch).query_row + row) * view.strides[1];
  }
  return batch * view.strides[0] + head * view.strides[1] + row * view.strides[2];
}

using Matrix = std::vector<double>;

// All tokens of one sequence and head, row-major.
Matrix load_rows(const ConstTensorView& view, const Problem& problem, std::int64_t batch, std::int64_t head,
                 std::int64_t rows, std::int64_t dim, bool query_side) {
  Matrix result(static_cast<std::size_t>(rows * dim));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t offset = offset_in(view, problem, batch, row, head, query_side);
    for (std::int64_t column = 0; column < dim; ++column) {
      result[static_cast<std::size_t>(row * dim + column)] = load_element(view.data, view.dtype, offset + column);
    }
  }
  return result;
}

// The keys of one sequence and head, which a page table may have spread over a pool.
Matrix load_keys(const ConstTensorView& view, const ConstTensorView& page_table, const Problem& problem,
                 std::int64_t batch, std::int64_t head, std::int64_t keys, std::int64_t dim) {
  if (page_table.absent()) {
    return load_rows(view, problem, batch, head, keys, dim, false);
  }
  Matrix result;
  for (std::int64_t key = 0; key < keys; ++key) {
    const std::int64_t page = static_cast<const std::int32_t*>(
        page_table.data)[batch * page_table.strides[0] + key / problem.page_size * page_table.strides[1]];
    const std::int64_t offset =
        page * view.strides[0] + key % problem.page_size * view.strides[1] + head * view.strides[2];
    for (std::int64_t column = 0; column < dim; ++column) {
      result.push_back(load_element(view.data, view.dtype, offset + column));
    }
  }
  return result;
}

void store_rows(const TensorView& view, const Problem& problem, std::int64_t batch, std::int64_t head,
                std::int64_t rows, std::int64_t dim, bool query_side, const Matrix& values) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t offset = offset_in(view, problem, batch, row, head, query_side);
    for (std::int64_t column = 0; column < dim; ++column) {
      store_element(view.data, view.dtype, offset + column, values[static_cast<std::size_t>(row * dim + column)]);
    }
  }
}

bool attends(const Problem& problem, const SequenceSpan& span, const Position& at) {
  const Mask& mask = problem.mask;
  const std::int64_t query = at.query;
  const std::int64_t key = at.key;
  if (mask.has_blocks()) {
    const BlockMask& blocks = mask.block_mask();
    if (!blocks.attends(blocks.pattern_of(at.batch, at.head), query, key)) {
      return false;
    }
  }
  if (mask.has_band()) {
    const std::int64_t position = query + mask.alignment().resolve(span.queries, span.keys);
    if (mask.left() != Mask::kUnlimited && position - key > mask.left()) {
      return false;
    }
    if (mask.right() != Mask::kUnlimited && key - position > mask.right()) {
      return false;
    }
  }
  if (mask.has_segments()) {
    const Segments& segments = mask.segment_ids();
    return segments.query[static_cast<std::size_t>(span.query_row + query)] ==
           segments.key[static_cast<std::size_t>(span.key_row + key)];
  }
  return true;
}

struct Score {
  double value = 0;
  double derivative = 1;  // with respect to scale * q . k
};

Score score_of(const Problem& problem, const ScoreTensors& tensors, const SequenceSpan& span, const Position& at,
               double scaled) {
  Score score{scaled, 1};
  if (problem.softcap > 0) {
    const double cap = problem.softcap;
    const double tangent = std::tanh(scaled / cap);
    score = {cap * tangent, 1 - tangent * tangent};
  }
  if (problem.score_function) {
    const FunctionRow row = function_row(problem.function_positions, at.batch, at.head, at.query, at.key, 1);
    problem.score_function->native().double_slopes(row, problem.score_function->params().data(), &score.value,
                                                   &score.derivative);
  }
  if (problem.bias_shape) {
    const auto& shape = *problem.bias_shape;
    const auto pick = [&](std::size_t axis, std::int64_t i) { return shape[axis] == 1 ? 0 : i; };
    score.value += element_or(tensors.bias, {pick(0, at.batch), pick(1, at.head), pick(2, at.query), pick(3, at.key)});
  }
  if (problem.alibi) {
    const std::int64_t diagonal = problem.mask.alignment().resolve(span.queries, span.keys);
    const double slope = tensors.alibi_slopes.rank == 2 ? element_or(tensors.alibi_slopes, {at.batch, at.head})
                                                        : element_or(tensors.alibi_slopes, {at.head});
    score.value -= slope * std::abs(static_cast<double>(at.query + diagonal - at.key));
  }
  return score;
}

double dot(const double* a, const double* b, std::int64_t dim) {
  double sum = 0;
  for (std::int64_t i = 0; i < dim; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

void add_scaled(double* target, double factor, const double* source, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) {
    target[i] += factor * source[i];
  }
}

// Weight of dropout for one element: 0 where it is dropped, 1 / (1 - p) where it is kept. It multiplies, so that a NaN
// under a dropped weight still reaches the row that sees it.
double dropout_weight(const Problem& problem, const Position& at) {
  const int threshold = problem.dropout.threshold();
  if (threshold == 0) {
    return 1.0;
  }
  const bool keeps = dropout_keeps(problem.dropout, at.batch, at.head, at.query, at.key);
  return keeps ? 256.0 / (256.0 - threshold) : 0.0;
}

// One query's row of scores.
struct ScoreRow {
  std::vector<std::int64_t> keys;  // those that attend
  std::vector<Score> scores;
  double sink = -kInfinity;
};

ScoreRow score_row(const Problem& problem, const ScoreTensors& tensors, const SequenceSpan& span, std::int64_t batch,
                   std::int64_t head, std::int64_t query, const Matrix& q, const Matrix& k) {
  ScoreRow row;
  const std::int64_t dim = problem.dim_qk;
  for (std::int64_t key = 0; key < span.keys; ++key) {
    const Position at{batch, head, query, key};
    if (attends(problem, span, at)) {
      const double scaled = static_cast<double>(problem.softmax_scale()) * dot(&q[query * dim], &k[key * dim], dim);
      row.keys.push_back(key);
      row.scores.push_back(score_of(problem, tensors, span, at, scaled));
    }
  }
  if (problem.sinks) {
    row.sink = element_or(tensors.sinks, {head});
  }
  return row;
}

double log_sum_exp(const ScoreRow& row) {
  double maximum = row.sink;
  bool undefined = std::isnan(row.sink);
  for (const Score& score : row.scores) {
    undefined = undefined || std::isnan(score.value);
    maximum = std::max(maximum, score.value);
  }
  if (undefined) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (maximum == -kInfinity) {
    return -kInfinity;
  }
  double sum = std::exp(row.sink - maximum);
  for (const Score& score : row.scores) {
    sum += std::exp(score.value - maximum);
  }
  return maximum + std::log(sum);
}

double probability(double score, double lse) { return lse == -kInfinity ? 0.0 : std::exp(score - lse); }

}  // namespace

void reference_forward(const Problem& problem, const ForwardTensors& tensors) {
  const std::int64_t dim_v = problem.dim_v;
  for (std::int64_t batch = 0; batch < problem.batch; ++batch) {
    const SequenceSpan span = problem.sequence(batch);
    for (std::int64_t head = 0; head < problem.heads_q; ++head) {
      const std::int64_t head_kv = head / problem.group_size();
      const Matrix q = load_rows(tensors.q, problem, batch, head, span.queries, problem.dim_qk, true);
      const Matrix k = load_keys(tensors.k, tensors.page_table, problem, batch, head_kv, span.keys, problem.dim_qk);
      const Matrix v = load_keys(tensors.v, tensors.page_table, problem, batch, head_kv, span.keys, dim_v);
      Matrix out(static_cast<std::size_t>(span.queries * dim_v), 0.0);
      for (std::int64_t query = 0; query < span.queries; ++query) {
        const ScoreRow row = score_row(problem, tensors.score, span, batch, head, query, q, k);
        const double lse = log_sum_exp(row);
        for (std::size_t n = 0; n < row.keys.size(); ++n) {
          const double weight = dropout_weight(problem, {batch, head, query, row.keys[n]});
          add_scaled(&out[query * dim_v], weight * probability(row.scores[n].value, lse), &v[row.keys[n] * dim_v],
                     dim_v);
        }
        if (!tensors.lse.absent()) {
          store_element(tensors.lse.data, tensors.lse.dtype, line_offset(tensors.lse, problem, batch, head, query),
                        lse);
        }
      }
      store_rows(tensors.out, problem, batch, head, span.queries, dim_v, true, out);
    }
  }
}

namespace {

// Gradients of one (sequence, query head); dk and dv gather over the heads of a group.
struct HeadGradients {
  Matrix dq, dk, dv;
  double dsink = 0;
};

void add_bias_gradient(Matrix& dbias, const ConstTensorView& view, const Position& at, double value) {
  const auto pick = [&](std::size_t axis, std::int64_t i) { return view.shape[axis] == 1 ? 0 : i; };
  const std::int64_t index =
      ((pick(0, at.batch) * view.shape[1] + pick(1, at.head)) * view.shape[2] + pick(2, at.query)) * view.shape[3] +
      pick(3, at.key);
  dbias[static_cast<std::size_t>(index)] += value;
}

// The row statistics of the backward pass: LSE recomputed, D = rowsum(dO * O) - dLSE.
void head_backward(const Problem& problem, const BackwardTensors& tensors, std::int64_t batch, std::int64_t head,
                   HeadGradients& gradients, Matrix& dbias) {
  const SequenceSpan span = problem.sequence(batch);
  const std::int64_t head_kv = head / problem.group_size();
  const std::int64_t dim = problem.dim_qk;
  const std::int64_t dim_v = problem.dim_v;
  const auto scale = static_cast<double>(problem.softmax_scale());
  const Matrix q = load_rows(tensors.q, problem, batch, head, span.queries, dim, true);
  const Matrix k = load_rows(tensors.k, problem, batch, head_kv, span.keys, dim, false);
  const Matrix v = load_rows(tensors.v, problem, batch, head_kv, span.keys, dim_v, false);
  const Matrix dout = load_rows(tensors.dout, problem, batch, head, span.queries, dim_v, true);
  gradients.dq.assign(static_cast<std::size_t>(span.queries * dim), 0.0);
  for (std::int64_t query = 0; query < span.queries; ++query) {
    const ScoreRow row = score_row(problem, tensors.score, span, batch, head, query, q, k);
    const double lse = log_sum_exp(row);
    if (lse == -kInfinity) {
      continue;  // sees nothing: zero gradients, also where 0 would meet an infinity
    }
    std::vector<double> dp(row.keys.size());
    double delta = 0;
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      const std::int64_t key = row.keys[n];
      const double weight = dropout_weight(problem, {batch, head, query, key});
      const double p = probability(row.scores[n].value, lse);
      dp[n] = weight * dot(&dout[query * dim_v], &v[key * dim_v], dim_v);
      delta += p * dp[n];
      add_scaled(&gradients.dv[key * dim_v], p * weight, &dout[query * dim_v], dim_v);
    }
    if (!tensors.dlse.absent()) {
      delta -=
          load_element(tensors.dlse.data, tensors.dlse.dtype, line_offset(tensors.dlse, problem, batch, head, query));
    }
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      const std::int64_t key = row.keys[n];
      const double ds = probability(row.scores[n].value, lse) * (dp[n] - delta);
      if (!dbias.empty()) {
        add_bias_gradient(dbias, tensors.dbias, {batch, head, query, key}, ds);
      }
      const double dscaled = scale * ds * row.scores[n].derivative;
      add_scaled(&gradients.dq[query * dim], dscaled, &k[key * dim], dim);
      add_scaled(&gradients.dk[key * dim], dscaled, &q[query * dim], dim);
    }
    if (problem.sinks) {
      gradients.dsink -= probability(row.sink, lse) * delta;
    }
  }
}

void store_bias_gradient(const TensorView& view, const Matrix& dbias) {
  std::size_t n = 0;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      for (std::int64_t i = 0; i < view.shape[2]; ++i) {
        for (std::int64_t j = 0; j < view.shape[3]; ++j) {
          const std::int64_t offset =
              b * view.strides[0] + h * view.strides[1] + i * view.strides[2] + j * view.strides[3];
          store_element(view.data, view.dtype, offset, dbias[n++]);
        }
      }
    }
  }
}

// Rows of K and V beyond a sequence's key length take part in nothing: their gradient is zero.
std::int64_t stored_keys(const Problem& problem, std::int64_t batch) {
  const auto b = static_cast<std::size_t>(batch);
  return problem.ragged() ? problem.cu_seqlens_k[b + 1] - problem.cu_seqlens_k[b] : problem.seq_k;
}

}  // namespace

void reference_backward(const Problem& problem, const BackwardTensors& tensors) {
  Matrix dbias(tensors.dbias.absent() ? 0 : static_cast<std::size_t>(tensors.dbias.elements()), 0.0);
  std::vector<double> dsinks(static_cast<std::size_t>(problem.heads_q), 0.0);
  for (std::int64_t batch = 0; batch < problem.batch; ++batch) {
    const SequenceSpan span = problem.sequence(batch);
    const std::int64_t keys = stored_keys(problem, batch);
    for (std::int64_t head_kv = 0; head_kv < problem.heads_kv; ++head_kv) {
      HeadGradients gradients;
      gradients.dk.assign(static_cast<std::size_t>(keys * problem.dim_qk), 0.0);
      gradients.dv.assign(static_cast<std::size_t>(keys * problem.dim_v), 0.0);
      for (std::int64_t member = 0; member < problem.group_size(); ++member) {
        const std::int64_t head = head_kv * problem.group_size() + member;
        gradients.dsink = 0;
        head_backward(problem, tensors, batch, head, gradients, dbias);
        store_rows(tensors.dq, problem, batch, head, span.queries, problem.dim_qk, true, gradients.dq);
        dsinks[static_cast<std::size_t>(head)] += gradients.dsink;
      }
      store_rows(tensors.dk, problem, batch, head_kv, keys, problem.dim_qk, false, gradients.dk);
      store_rows(tensors.dv, problem, batch, head_kv, keys, problem.dim_v, false, gradients.dv);
    }
  }
  if (!tensors.dbias.absent()) {
    store_bias_gradient(tensors.dbias, dbias);
  }
  for (std::int64_t head = 0; head < problem.heads_q && !tensors.dsinks.absent(); ++head) {
    store_element(tensors.dsinks.data, tensors.dsinks.dtype, head * tensors.dsinks.strides[0],
                  dsinks[static_cast<std::size_t>(head)]);
  }
}

}  // namespace tessera::internal
