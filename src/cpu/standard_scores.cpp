#include "cpu/standard_scores.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/philox.h"
#include "cpu/standard_rows.h"
#include "function/native.h"

namespace tessera::internal {

namespace {

float slope_of(const ConstTensorView& slopes, std::int64_t batch, std::int64_t head) {
  const std::int64_t index =
      slopes.rank == 2 ? batch * slopes.strides[0] + head * slopes.strides[1] : head * slopes.strides[0];
  return static_cast<const float*>(slopes.data)[index];
}

// Weights of dropout for the 64 keys of a group, in order.
using GroupWeights = std::array<float, 64>;

GroupWeights group_weights(const Dropout& dropout, std::int64_t batch, std::int64_t head, std::int64_t query,
                           std::int64_t group, int threshold) {
  constexpr int kLanes = 4;
  const float kept = threshold < 256 ? 256.0F / static_cast<float>(256 - threshold) : 0.0F;
  std::array<PhiloxBlock, kLanes> blocks;
  for (int lane = 0; lane < kLanes; ++lane) {
    blocks[static_cast<std::size_t>(lane)] = dropout_block(dropout.seed, batch, head, query, group, lane);
  }
  GroupWeights weights;
  for (std::int64_t key = 0; key < 64; ++key) {
    const PhiloxBlock& block = blocks[static_cast<std::size_t>(dropout_lane(key))];
    weights[static_cast<std::size_t>(key)] = static_cast<int>(dropout_byte(block, key)) >= threshold ? kept : 0.0F;
  }
  return weights;
}

void add_row(float* out, const float* row, float weight, std::int64_t dim) {
  for (std::int64_t c = 0; c < dim; ++c) {
    out[c] += weight * row[c];
  }
}

constexpr std::size_t kMaxDim = 512;

}  // namespace

RowModifiers::RowModifiers(const StandardGeometry& geometry, const ScoreTensors& score, std::int64_t batch,
                           std::int64_t head)
    : problem_(geometry.problem()),
      batch_(batch),
      head_(head),
      diagonal_(problem_.mask.alignment().resolve(geometry.span(batch).queries, geometry.span(batch).keys)),
      threshold_(problem_.dropout.threshold()),
      sink_(-std::numeric_limits<float>::infinity()),
      bias_(score.bias) {
  if (problem_.alibi) {
    slope_ = slope_of(score.alibi_slopes, batch, head);
  }
  if (problem_.sinks) {
    sink_ = static_cast<const float*>(score.sinks.data)[head * score.sinks.strides[0]];
  }
}

void RowModifiers::add_bias(std::int64_t query, Range keys, float* row) const {
  const auto stride = [this](std::size_t axis) { return bias_.shape[axis] == 1 ? 0 : bias_.strides[axis]; };
  const std::int64_t begin = batch_ * stride(0) + head_ * stride(1) + query * stride(2);
  const std::int64_t step = stride(3);
  if (bias_.dtype == DType::float32 && step == 1) {
    standard_rows::add(row + keys.begin, static_cast<const float*>(bias_.data) + begin + keys.begin, keys.size());
    return;
  }
  std::array<float, 256> chunk;
  for (std::int64_t j = keys.begin; j < keys.end; j += static_cast<std::int64_t>(chunk.size())) {
    const auto size = std::min<std::int64_t>(keys.end - j, static_cast<std::int64_t>(chunk.size()));
    for (std::int64_t c = 0; c < size; ++c) {
      chunk[static_cast<std::size_t>(c)] =
          static_cast<float>(load_element(bias_.data, bias_.dtype, begin + (j + c) * step));
    }
    standard_rows::add(row + j, chunk.data(), size);
  }
}

void RowModifiers::apply_score_function(std::int64_t query, Range keys, float* row, float* derivative) const {
  const ScoreFunction& function = *problem_.score_function;
  const FunctionRow of_keys = function_row(problem_.function_positions, batch_, head_, query, keys.begin, keys.size());
  if (derivative == nullptr) {
    function.native().float_row(of_keys, function.params().data(), row + keys.begin);
  } else {
    function.native().float_slopes(of_keys, function.params().data(), row + keys.begin, derivative + keys.begin);
  }
}

void RowModifiers::apply(std::int64_t query, Range keys, float* row, float* derivative) const {
  float* first = row + keys.begin;
  if (problem_.softcap > 0) {
    standard_rows::softcap(first, derivative == nullptr ? nullptr : derivative + keys.begin, keys.size(),
                           problem_.softcap);
  } else if (derivative != nullptr) {
    std::fill(derivative + keys.begin, derivative + keys.end, 1.0F);
  }
  if (problem_.score_function) {
    apply_score_function(query, keys, row, derivative);
  }
  if (problem_.bias_shape) {
    add_bias(query, keys, row);
  }
  if (problem_.alibi) {
    standard_rows::subtract_distance(first, keys.size(), slope_, query + diagonal_ - keys.begin);
  }
  standard_rows::round(first, keys.size(), problem_.dtype);
}

// Calls body(key, size, weights) for runs of keys with their dropout weights.
template <class Body>
void RowModifiers::for_each_dropout_group(std::int64_t query, Range keys, const Body& body) const {
  const Dropout& dropout = problem_.dropout;
  for (std::int64_t j = keys.begin; j < keys.end;) {
    const std::int64_t position = j + dropout.key_start;
    const std::int64_t size = std::min<std::int64_t>(keys.end - j, 64 - (position & 63));
    const GroupWeights weights = group_weights(dropout, batch_ + dropout.batch_start, head_ + dropout.head_start,
                                               query + dropout.query_start, position >> 6, threshold_);
    body(j, size, weights.data() + (position & 63));
    j += size;
  }
}

void RowModifiers::drop(std::int64_t query, Range keys, float* weights) const {
  if (threshold_ > 0) {
    for_each_dropout_group(query, keys, [&](std::int64_t j, std::int64_t size, const float* kept) {
      standard_rows::multiply(weights + j, kept, size);
    });
  }
}

void RowModifiers::softmax_gradient(std::int64_t query, Range keys, float delta, float* weights,
                                    float* gradient) const {
  if (threshold_ == 0) {
    standard_rows::softmax_gradient(weights + keys.begin, gradient + keys.begin, keys.size(), -delta);
    return;
  }
  for_each_dropout_group(query, keys, [&](std::int64_t j, std::int64_t size, const float* kept) {
    standard_rows::multiply(gradient + j, kept, size);
    standard_rows::softmax_gradient(weights + j, gradient + j, size, -delta);
    standard_rows::multiply(weights + j, kept, size);
  });
}

void fill_gaps(const TileSchedule& schedule, std::int64_t query, Range keys, float value, float* row) {
  std::int64_t filled = keys.begin;
  for (Range run = schedule.next_keys(query, keys); !run.empty();
       run = schedule.next_keys(query, {run.end, keys.end})) {
    std::fill(row + filled, row + run.begin, value);
    filled = run.end;
  }
  std::fill(row + filled, row + std::max(filled, keys.end), value);
}

void finish_row(DType dtype, std::int64_t size, Range keys, float* row) {
  const Range used = keys.empty() ? Range{} : keys;
  std::fill(row, row + used.begin, 0.0F);
  standard_rows::round(row + used.begin, used.size(), dtype);
  std::fill(row + used.end, row + size, 0.0F);
}

void take_out(float* rows, std::int64_t count, std::int64_t dim, std::uint8_t* flags) {
  for (std::int64_t row = 0; row < count; ++row) {
    flags[row] = standard_rows::finite(rows + row * dim, dim) ? 0 : 1;
    if (flags[row] != 0) {
      std::fill(rows + row * dim, rows + (row + 1) * dim, 0.0F);
    }
  }
}

void put_in_keys(const StandardGeometry& geometry, const Band& band, const WeightRows& weights,
                 const std::uint8_t* flags, const Rows<const void>& keys, std::int64_t dim, float* out) {
  const TileSchedule& schedule = geometry.schedule(band.batch, band.head);
  const std::int64_t key_count = geometry.span(band.batch).keys;
  std::array<float, kMaxDim> row;
  for (const std::uint8_t* flag = std::find(flags, flags + key_count, 1); flag != flags + key_count;
       flag = std::find(flag + 1, flags + key_count, 1)) {
    const std::int64_t key = flag - flags;
    load_row(keys, key, dim, row.data());
    for (std::int64_t query = band.begin; query < band.end; ++query) {
      const std::int64_t local = query - band.begin;
      if (!weights.is_blind(local) && !schedule.next_keys(query, {key, key + 1}).empty()) {
        add_row(out + local * dim, row.data(), weights.factor * weights.first[local * key_count + key], dim);
      }
    }
  }
}

void put_in_queries(const StandardGeometry& geometry, const Band& band, std::int64_t head, const WeightRows& weights,
                    const std::uint8_t* flags, const Rows<const void>& queries, std::int64_t dim, float* out) {
  const TileSchedule& schedule = geometry.schedule(band.batch, head);
  const SequenceSpan span = geometry.span(band.batch);
  std::array<float, kMaxDim> row;
  for (const std::uint8_t* flag = std::find(flags, flags + span.queries, 1); flag != flags + span.queries;
       flag = std::find(flag + 1, flags + span.queries, 1)) {
    const std::int64_t query = flag - flags;
    if (weights.is_blind(query)) {
      continue;
    }
    load_row(queries, query, dim, row.data());
    for (Range run = schedule.next_keys(query, {band.begin, band.end}); !run.empty();
         run = schedule.next_keys(query, {run.end, band.end})) {
      for (std::int64_t key = run.begin; key < run.end; ++key) {
        add_row(out + (key - band.begin) * dim, row.data(), weights.factor * weights.first[query * span.keys + key],
                dim);
      }
    }
  }
}

}  // namespace tessera::internal
