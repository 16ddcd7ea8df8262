#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/blas.h"
#include "cpu/standard_executables.h"
#include "cpu/standard_rows.h"
#include "cpu/standard_scores.h"
#include "cpu/standard_steps.h"

namespace tessera::internal {

namespace {

// S of one row to P, in place; returns the LSE.
float softmax_row(const RowModifiers& modifiers, const TileSchedule& schedule, DType dtype, std::int64_t query,
                  float* row) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Range keys = schedule.keys_of(query);
  modifiers.apply(query, keys, row, nullptr);
  fill_gaps(schedule, query, keys, -kInfinity, row);
  const float maximum = std::max(standard_rows::max(row + keys.begin, keys.size()), modifiers.sink());
  const float shift = maximum == -kInfinity ? 0.0F : maximum;
  const float sum = standard_rows::exp(row + keys.begin, keys.size(), shift) + std::exp(modifiers.sink() - shift);
  if (sum != 0.0F) {
    standard_rows::scale(row + keys.begin, keys.size(), 1.0F / sum);
  }
  standard_rows::round(row + keys.begin, keys.size(), dtype);
  modifiers.drop(query, keys, row);
  finish_row(dtype, schedule.keys(), keys, row);
  return sum == 0.0F ? -kInfinity : shift + std::log(sum);
}

}  // namespace

StandardForward::StandardForward(const Problem& problem, int threads) : geometry_(problem, threads) {
  scores_ = layout_.add<float>(geometry_.score_elements());
  q_ = layout_.add<float>(geometry_.query_rows() * problem.dim_qk);
  k_ = layout_.add<float>(geometry_.key_rows() * problem.dim_qk);
  v_ = layout_.add<float>(geometry_.key_rows() * problem.dim_v);
  out_ = layout_.add<float>(geometry_.query_rows() * problem.dim_v);
  v_flags_ = layout_.add<std::uint8_t>(geometry_.key_rows());
}

PlanFacts StandardForward::facts() const { return standard_facts(geometry_, layout_.bytes()); }

void StandardForward::run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* /*stream*/) const {
  const SingleThreadedBlas blas;
  const Problem& problem = geometry_.problem();
  pack(tensors, workspace);
  multiply_transposed(geometry_, problem.softmax_scale(), problem.dim_qk, q_.in(workspace), k_.in(workspace),
                      scores_.in(workspace));
  softmax(tensors, workspace);
  multiply_values(tensors, workspace);
}

void StandardForward::pack(const ForwardTensors& tensors, std::span<std::byte> workspace) const {
  const Problem& problem = geometry_.problem();
  pack_queries(geometry_, tensors.q, problem.dim_qk, q_.in(workspace));
  pack_keys(geometry_, tensors.k, problem.dim_qk, k_.in(workspace));
  pack_keys(geometry_, tensors.v, problem.dim_v, v_.in(workspace));
  take_out_keys(geometry_, problem.dim_v, v_.in(workspace), v_flags_.in(workspace));
}

void StandardForward::softmax(const ForwardTensors& tensors, std::span<std::byte> workspace) const {
  const DType dtype = geometry_.problem().dtype;
  for_each_band(geometry_.threads(), geometry_.query_bands(), [&](const Band& band) {
    const SequenceSpan span = geometry_.span(band.batch);
    const TileSchedule& schedule = geometry_.schedule(band.batch, band.head);
    const RowModifiers modifiers(geometry_, tensors.score, band.batch, band.head);
    float* row = scores_.in(workspace) + geometry_.score_row(band.batch, band.head, band.begin);
    for (std::int64_t query = band.begin; query < band.end; ++query, row += span.keys) {
      const float lse = softmax_row(modifiers, schedule, dtype, query, row);
      if (!tensors.lse.absent()) {
        const Rows<void> line = line_of(tensors.lse, band.batch, span.query_row, band.head);
        *static_cast<float*>(line.at(query)) = lse;
      }
    }
  });
}

void StandardForward::multiply_values(const ForwardTensors& tensors, std::span<std::byte> workspace) const {
  const Problem& problem = geometry_.problem();
  const std::int64_t dim = problem.dim_v;
  for_each_band(geometry_.threads(), geometry_.query_bands(), [&](const Band& band) {
    const SequenceSpan span = geometry_.span(band.batch);
    const std::int64_t head_kv = band.head / problem.group_size();
    const std::int64_t key_row = geometry_.key_row(band.batch, head_kv, 0);
    const float* weights = scores_.in(workspace) + geometry_.score_row(band.batch, band.head, band.begin);
    float* out = out_.in(workspace) + geometry_.query_row(band.batch, band.head, band.begin) * dim;
    sgemm({band.rows(), dim, span.keys}, 1.0F, {weights, span.keys}, {v_.in(workspace) + key_row * dim, dim}, false,
          out, dim);
    put_in_keys(geometry_, band, {weights, 1.0F, nullptr}, v_flags_.in(workspace) + key_row,
                rows_of(tensors.v, band.batch, span.key_row, head_kv), dim, out);
    store_rows(out, dim, rows_of(tensors.out, band.batch, span.query_row, band.head), band);
  });
}

}  // namespace tessera::internal
