#include "cpu/standard_geometry.h"

#include <algorithm>
#include <cstring>

#include "core/fail.h"

namespace tessera::internal {

namespace {

// Long bands make long matrix products, which are the fast ones; short bands keep all threads busy.
std::int64_t band_rows(std::int64_t total_rows) {
  constexpr std::int64_t kTasksWanted = 8;
  return std::clamp<std::int64_t>(round_up(ceil_div(total_rows, kTasksWanted), 64), 128, 1024);
}

void add_bands(std::vector<Band>& bands, std::int64_t batch, std::int64_t heads, std::int64_t rows,
               std::int64_t rows_in_band) {
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t begin = 0; begin < rows; begin += rows_in_band) {
      bands.push_back({batch, head, begin, std::min(begin + rows_in_band, rows)});
    }
  }
}

}  // namespace

StandardGeometry::StandardGeometry(const Problem& problem, int threads)
    : problem_(problem), threads_(threads), alike_(problem.sequences_are_alike()) {
  score_begin_.push_back(0);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan sequence = span(b);
    const std::int64_t scores = checked_mul(checked_mul(sequence.queries, sequence.keys, "elements of the scores"),
                                            problem.heads_q, "elements of the scores");
    score_begin_.push_back(checked_add(score_begin_.back(), scores, "elements of the scores"));
    for (std::int64_t head = 0; head < problem.schedules_per_sequence() && (b == 0 || !alike_); ++head) {
      schedules_.push_back(problem.schedule(b, 1, 1, head));
    }
    add_bands(query_bands_, b, problem.heads_q, sequence.queries, band_rows(query_rows()));
    add_bands(key_bands_, b, problem.heads_kv, stored_keys(b), band_rows(key_rows()));
  }
}

std::int64_t StandardGeometry::stored_keys(std::int64_t batch) const {
  const auto b = static_cast<std::size_t>(batch);
  return problem_.ragged() ? problem_.cu_seqlens_k[b + 1] - problem_.cu_seqlens_k[b] : problem_.seq_k;
}

const TileSchedule& StandardGeometry::schedule(std::int64_t batch, std::int64_t head) const {
  const std::int64_t heads = problem_.schedules_per_sequence();
  return schedules_[static_cast<std::size_t>((alike_ ? 0 : batch * heads) + (heads == 1 ? 0 : head))];
}

std::int64_t StandardGeometry::query_row(std::int64_t batch, std::int64_t head, std::int64_t query) const {
  const SequenceSpan sequence = span(batch);
  return sequence.query_row * problem_.heads_q + head * sequence.queries + query;
}

std::int64_t StandardGeometry::key_row(std::int64_t batch, std::int64_t head_kv, std::int64_t key) const {
  return span(batch).key_row * problem_.heads_kv + head_kv * stored_keys(batch) + key;
}

std::int64_t StandardGeometry::score_row(std::int64_t batch, std::int64_t head, std::int64_t query) const {
  const SequenceSpan sequence = span(batch);
  return score_begin_[static_cast<std::size_t>(batch)] + (head * sequence.queries + query) * sequence.keys;
}

void load_row(const Rows<const void>& rows, std::int64_t row, std::int64_t size, float* result) {
  const void* source = rows.at(row);
  if (rows.dtype == DType::float32) {
    std::memcpy(result, source, static_cast<std::size_t>(size) * sizeof(float));
    return;
  }
  const auto* halves = static_cast<const std::uint16_t*>(source);
  for (std::int64_t j = 0; j < size; ++j) {
    result[j] = rows.dtype == DType::bfloat16 ? bfloat16_to_float(halves[j]) : float16_to_float(halves[j]);
  }
}

void store_row(const float* values, std::int64_t size, const Rows<void>& rows, std::int64_t row) {
  void* target = rows.at(row);
  if (rows.dtype == DType::float32) {
    std::memcpy(target, values, static_cast<std::size_t>(size) * sizeof(float));
    return;
  }
  auto* halves = static_cast<std::uint16_t*>(target);
  for (std::int64_t j = 0; j < size; ++j) {
    halves[j] = rows.dtype == DType::bfloat16 ? float_to_bfloat16(values[j]) : float_to_float16(values[j]);
  }
}

}  // namespace tessera::internal
