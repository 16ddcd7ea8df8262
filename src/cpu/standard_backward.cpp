#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cpu/blas.h"
#include "cpu/standard_executables.h"
#include "cpu/standard_rows.h"
#include "cpu/standard_scores.h"
#include "cpu/standard_steps.h"
#include "plan/score_function.h"

namespace tessera::internal {

namespace {

constexpr float kBlindLse = -std::numeric_limits<float>::infinity();  // of a row that sees nothing
constexpr std::int64_t kMaxDim = 512;

float line_value(const ConstTensorView& line, const Band& band, const SequenceSpan& span, std::int64_t query) {
  return *static_cast<const float*>(line_of(line, band.batch, span.query_row, band.head).at(query));
}

}  // namespace

StandardBackward::StandardBackward(const Problem& problem, int threads) : geometry_(problem, threads) {
  const std::int64_t query_rows = geometry_.query_rows();
  const std::int64_t key_rows = geometry_.key_rows();
  weights_ = layout_.add<float>(geometry_.score_elements());
  score_gradient_ = layout_.add<float>(geometry_.score_elements());
  score_derivative_ = layout_.add<float>(bends_scores(problem) ? geometry_.score_elements() : 0);
  q_ = layout_.add<float>(query_rows * problem.dim_qk);
  k_ = layout_.add<float>(key_rows * problem.dim_qk);
  v_ = layout_.add<float>(key_rows * problem.dim_v);
  dout_ = layout_.add<float>(query_rows * problem.dim_v);
  delta_ = layout_.add<float>(query_rows);
  dq_ = layout_.add<float>(query_rows * problem.dim_qk);
  dk_ = layout_.add<float>(key_rows * problem.dim_qk);
  dv_ = layout_.add<float>(key_rows * problem.dim_v);
  q_flags_ = layout_.add<std::uint8_t>(query_rows);
  k_flags_ = layout_.add<std::uint8_t>(key_rows);
  dout_flags_ = layout_.add<std::uint8_t>(query_rows);
  blind_ = layout_.add<std::uint8_t>(query_rows);
}

PlanFacts StandardBackward::facts() const { return standard_facts(geometry_, layout_.bytes()); }

void StandardBackward::run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* /*stream*/) const {
  const SingleThreadedBlas blas;
  const Problem& problem = geometry_.problem();
  pack(tensors, workspace);
  multiply_transposed(geometry_, problem.softmax_scale(), problem.dim_qk, q_.in(workspace), k_.in(workspace),
                      weights_.in(workspace));
  multiply_transposed(geometry_, 1.0F, problem.dim_v, dout_.in(workspace), v_.in(workspace),
                      score_gradient_.in(workspace));
  for_each_band(geometry_.threads(), geometry_.query_bands(),
                [&](const Band& band) { score_gradients(tensors, workspace, band); });
  if (!tensors.dbias.absent()) {
    bias_gradient(tensors.dbias, score_gradient_.in(workspace));
  }
  if (!tensors.dsinks.absent()) {
    sink_gradient(tensors, delta_.in(workspace));
  }
  if (bends_scores(problem)) {
    through_score(workspace);
  }
  take_out_queries(geometry_, problem.dim_qk, q_.in(workspace), q_flags_.in(workspace));
  take_out_keys(geometry_, problem.dim_qk, k_.in(workspace), k_flags_.in(workspace));
  take_out_queries(geometry_, problem.dim_v, dout_.in(workspace), dout_flags_.in(workspace));
  query_gradients(tensors, workspace);
  key_gradients(tensors, workspace);
}

void StandardBackward::pack(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
  const Problem& problem = geometry_.problem();
  pack_queries(geometry_, tensors.q, problem.dim_qk, q_.in(workspace));
  pack_keys(geometry_, tensors.k, problem.dim_qk, k_.in(workspace));
  pack_keys(geometry_, tensors.v, problem.dim_v, v_.in(workspace));
  pack_queries(geometry_, tensors.dout, problem.dim_v, dout_.in(workspace));
}

// S and dP to P with dropout and dS, in place.
void StandardBackward::score_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace,
                                       const Band& band) const {
  const RowModifiers modifiers(geometry_, tensors.score, band.batch, band.head);
  for (std::int64_t query = band.begin; query < band.end; ++query) {
    score_gradient_row(tensors, workspace, band, modifiers, query);
  }
}

void StandardBackward::score_gradient_row(const BackwardTensors& tensors, std::span<std::byte> workspace,
                                          const Band& band, const RowModifiers& modifiers, std::int64_t query) const {
  const Problem& problem = geometry_.problem();
  const SequenceSpan span = geometry_.span(band.batch);
  const std::int64_t row = geometry_.query_row(band.batch, band.head, query);
  const std::int64_t first = geometry_.score_row(band.batch, band.head, query);
  float* weights = weights_.in(workspace) + first;
  float* gradient = score_gradient_.in(workspace) + first;
  const TileSchedule& schedule = geometry_.schedule(band.batch, band.head);
  const Range seen = schedule.keys_of(query);
  modifiers.apply(query, seen, weights, bends_scores(problem) ? score_derivative_.in(workspace) + first : nullptr);

  float delta = 0.0F;
  if (!seen.empty()) {
    std::array<float, kMaxDim> out;
    load_row(rows_of(tensors.out, band.batch, span.query_row, band.head), query, problem.dim_v, out.data());
    delta = standard_rows::dot(out.data(), dout_.in(workspace) + row * problem.dim_v, problem.dim_v);
  }
  if (!tensors.dlse.absent()) {
    delta -= line_value(tensors.dlse, band, span, query);
  }
  delta_.in(workspace)[row] = delta;

  const float lse = line_value(tensors.lse, band, span, query);
  const bool blind = lse == kBlindLse;
  blind_.in(workspace)[row] = blind ? 1 : 0;
  const Range keys = blind ? Range{} : seen;
  standard_rows::exp(weights + keys.begin, keys.size(), lse);
  standard_rows::round(weights + keys.begin, keys.size(), problem.dtype);
  standard_rows::round(gradient + keys.begin, keys.size(), problem.dtype);
  modifiers.softmax_gradient(query, keys, delta, weights, gradient);
  fill_gaps(schedule, query, keys, 0.0F, weights);
  fill_gaps(schedule, query, keys, 0.0F, gradient);
  finish_row(problem.dtype, span.keys, keys, weights);
  finish_row(problem.dtype, span.keys, keys, gradient);
}

// dbias is the sum of dS over the axes along which the bias is broadcast: each element by one thread, in one order.
void StandardBackward::bias_gradient(const TensorView& dbias, const float* score_gradient) const {
  constexpr std::int64_t kColumns = 256;
  const auto& shape = dbias.shape;
  const std::int64_t chunks = ceil_div(shape[3], kColumns);
  const auto all_or_one = [&](std::size_t axis, std::int64_t index, std::int64_t extent) {
    return shape[axis] == 1 ? Range{0, extent} : Range{index, std::min(index + 1, extent)};
  };
  parallel_items(shape[0] * shape[1] * shape[2] * chunks, geometry_.threads(), [&](std::int64_t task, int /*thread*/) {
    const std::int64_t column = task % chunks * kColumns;
    const std::int64_t i = task / chunks % shape[2];
    const std::int64_t h = task / chunks / shape[2] % shape[1];
    const std::int64_t b = task / chunks / shape[2] / shape[1];
    std::array<double, kColumns> sums{};
    const Range batches = all_or_one(0, b, geometry_.problem().batch);
    const Range heads = all_or_one(1, h, geometry_.problem().heads_q);
    for (std::int64_t batch = batches.begin; batch < batches.end; ++batch) {
      const SequenceSpan span = geometry_.span(batch);
      const Range queries = all_or_one(2, i, span.queries);
      const Range keys = shape[3] == 1 ? Range{0, span.keys} : Range{column, std::min(column + kColumns, span.keys)};
      for (std::int64_t head = heads.begin; head < heads.end; ++head) {
        for (std::int64_t query = queries.begin; query < queries.end; ++query) {
          const float* row = score_gradient + geometry_.score_row(batch, head, query);
          for (std::int64_t key = keys.begin; key < keys.end; ++key) {
            sums[static_cast<std::size_t>(shape[3] == 1 ? 0 : key - column)] += row[key];
          }
        }
      }
    }
    const auto& strides = dbias.strides;
    const std::int64_t offset = b * strides[0] + h * strides[1] + i * strides[2];
    for (std::int64_t j = column; j < std::min(column + kColumns, shape[3]); ++j) {
      store_element(dbias.data, dbias.dtype, offset + j * strides[3], sums[static_cast<std::size_t>(j - column)]);
    }
  });
}

// The sink is a key whose value is zero: its weight exp(sink - LSE) takes part in the softmax alone.
void StandardBackward::sink_gradient(const BackwardTensors& tensors, const float* delta) const {
  const Problem& problem = geometry_.problem();
  parallel_items(problem.heads_q, geometry_.threads(), [&](std::int64_t head, int /*thread*/) {
    const float sink = static_cast<const float*>(tensors.score.sinks.data)[head * tensors.score.sinks.strides[0]];
    double sum = 0;
    for (std::int64_t batch = 0; batch < problem.batch; ++batch) {
      const SequenceSpan span = geometry_.span(batch);
      for (std::int64_t query = 0; query < span.queries; ++query) {
        const float lse = line_value(tensors.lse, {batch, head}, span, query);
        const float weight = lse == kBlindLse ? 0.0F : std::exp(sink - lse);
        sum -= static_cast<double>(weight) * delta[geometry_.query_row(batch, head, query)];
      }
    }
    static_cast<float*>(tensors.dsinks.data)[head * tensors.dsinks.strides[0]] = static_cast<float>(sum);
  });
}

// dS to the gradient with respect to scale * q . k.
void StandardBackward::through_score(std::span<std::byte> workspace) const {
  for_each_band(geometry_.threads(), geometry_.query_bands(), [&](const Band& band) {
    const TileSchedule& schedule = geometry_.schedule(band.batch, band.head);
    for (std::int64_t query = band.begin; query < band.end; ++query) {
      const Range keys = schedule.keys_of(query);
      const std::int64_t first = geometry_.score_row(band.batch, band.head, query);
      float* gradient = score_gradient_.in(workspace) + first;
      standard_rows::multiply(gradient + keys.begin, score_derivative_.in(workspace) + first + keys.begin, keys.size());
      standard_rows::round(gradient + keys.begin, keys.size(), geometry_.problem().dtype);
      fill_gaps(schedule, query, keys, 0.0F, gradient);
    }
  });
}

void StandardBackward::query_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
  const Problem& problem = geometry_.problem();
  const std::int64_t dim = problem.dim_qk;
  const float scale = problem.softmax_scale();
  for_each_band(geometry_.threads(), geometry_.query_bands(), [&](const Band& band) {
    const SequenceSpan span = geometry_.span(band.batch);
    const std::int64_t head_kv = band.head / problem.group_size();
    const std::int64_t key_row = geometry_.key_row(band.batch, head_kv, 0);
    const float* gradient = score_gradient_.in(workspace) + geometry_.score_row(band.batch, band.head, band.begin);
    const std::int64_t query_row = geometry_.query_row(band.batch, band.head, band.begin);
    float* dq = dq_.in(workspace) + query_row * dim;
    sgemm({band.rows(), dim, span.keys}, scale, {gradient, span.keys}, {k_.in(workspace) + key_row * dim, dim}, false,
          dq, dim);
    put_in_keys(geometry_, band, {gradient, scale, blind_.in(workspace) + query_row}, k_flags_.in(workspace) + key_row,
                rows_of(tensors.k, band.batch, span.key_row, head_kv), dim, dq);
    store_rows(dq, dim, rows_of(tensors.dq, band.batch, span.query_row, band.head), band);
  });
}

void StandardBackward::key_gradients(const BackwardTensors& tensors, std::span<std::byte> workspace) const {
  const Problem& problem = geometry_.problem();
  const auto gather = [&](const Band& band, const float* scores, float factor, const float* packed,
                          const std::uint8_t* flags, const ConstTensorView& source, std::int64_t dim, float* out) {
    const SequenceSpan span = geometry_.span(band.batch);
    const Band used{band.batch, band.head, band.begin, std::min(band.end, std::max(span.keys, band.begin))};
    std::fill(out, out + band.rows() * dim, 0.0F);
    for (std::int64_t member = 0; member < problem.group_size(); ++member) {
      const std::int64_t head = band.head * problem.group_size() + member;
      const std::int64_t query_row = geometry_.query_row(band.batch, head, 0);
      const float* of_head = scores + geometry_.score_row(band.batch, head, 0);
      sgemm({used.rows(), dim, span.queries}, factor, {of_head + band.begin, span.keys, true},
            {packed + query_row * dim, dim}, true, out, dim);
      put_in_queries(geometry_, used, head, {of_head, factor, blind_.in(workspace) + query_row}, flags + query_row,
                     rows_of(source, band.batch, span.query_row, head), dim, out);
    }
  };
  for_each_band(geometry_.threads(), geometry_.key_bands(), [&](const Band& band) {
    const std::int64_t key_row = geometry_.key_row(band.batch, band.head, band.begin);
    const std::int64_t first = geometry_.span(band.batch).key_row;
    float* dk = dk_.in(workspace) + key_row * problem.dim_qk;
    float* dv = dv_.in(workspace) + key_row * problem.dim_v;
    gather(band, score_gradient_.in(workspace), problem.softmax_scale(), q_.in(workspace), q_flags_.in(workspace),
           tensors.q, problem.dim_qk, dk);
    gather(band, weights_.in(workspace), 1.0F, dout_.in(workspace), dout_flags_.in(workspace), tensors.dout,
           problem.dim_v, dv);
    store_rows(dk, problem.dim_qk, rows_of(tensors.dk, band.batch, first, band.head), band);
    store_rows(dv, problem.dim_v, rows_of(tensors.dv, band.batch, first, band.head), band);
  });
}

}  // namespace tessera::internal
