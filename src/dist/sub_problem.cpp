#include "dist/sub_problem.h"

#include <algorithm>
#include <optional>

#include "core/fail.h"
#include "dist/block_part.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kUnlimited = Mask::kUnlimited;
constexpr std::int64_t kMostDiagonal = std::int64_t{1} << 40;

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// Keys i + low .. i + high of query i; an absent end is open.
struct Band {
  std::optional<std::int64_t> low;
  std::optional<std::int64_t> high;
};

// A mask's band between two stripes, and what it does to ALiBi.
struct StripedBand {
  Mask mask;
  float distance_shift = 0;
};

Mask mask_of(const Band& band) {
  if (band.low && band.high) {
    return Mask::window(*band.high - *band.low, 0, Alignment::at(*band.high));
  }
  if (band.high) {
    return Mask::causal(Alignment::at(*band.high));
  }
  return band.low ? Mask::window(0, kUnlimited, Alignment::at(*band.low)) : Mask::none();
}

// A window of `band` whose query i stands at key i + diagonal, to the left (low .. diagonal) or the right of it.
Mask left_of(const Band& band, std::int64_t diagonal) {
  return Mask::window(band.low ? diagonal - *band.low : kUnlimited, 0, Alignment::at(diagonal));
}
Mask right_of(const Band& band, std::int64_t diagonal) {
  return Mask::window(0, band.high ? *band.high - diagonal : kUnlimited, Alignment::at(diagonal));
}

// Query i of the stripe stands `offset` + stride * (i - j) after key j. Sides wider than any distance are open.
//
// ALiBi's distance |offset + stride (i - j)| is, with offset = stride * diagonal + rest, stride |i + diagonal - j| + rest up
// to the diagonal and stride |i + diagonal + 1 - j| + stride - rest beyond it: two bands, each with a constant.
std::vector<StripedBand> striped_bands(const Problem& whole, std::int64_t offset, std::int64_t stride,
                                       std::int64_t farthest) {
  const Mask& mask = whole.mask;
  Band band;
  if (mask.left() < farthest) {
    band.low = -floor_div(mask.left() - offset, stride);
  }
  if (mask.right() < farthest) {
    band.high = floor_div(offset + mask.right(), stride);
  }
  if (band.low && band.high && *band.low > *band.high) {
    return {};
  }
  if (!whole.alibi) {
    return {{mask_of(band), 0}};
  }
  const std::int64_t diagonal = floor_div(offset, stride);
  const std::int64_t rest = offset - stride * diagonal;
  if (rest == 0) {
    Mask both = Mask::window(band.low ? diagonal - *band.low : kUnlimited,
                             band.high ? *band.high - diagonal : kUnlimited, Alignment::at(diagonal));
    return {{both, 0}};
  }
  std::vector<StripedBand> bands;
  if (!band.low || *band.low <= diagonal) {
    bands.push_back({left_of(band, diagonal), static_cast<float>(rest)});
  }
  if (!band.high || *band.high > diagonal) {
    bands.push_back({right_of(band, diagonal + 1), static_cast<float>(stride - rest)});
  }
  return bands;
}

std::vector<std::int32_t> stripe_of(const std::vector<std::int32_t>& ids, std::int64_t length, const SubProblem& part,
                                    const Stripe& stripe) {
  std::vector<std::int32_t> result;
  result.reserve(static_cast<std::size_t>(part.problem.batch * stripe.count));
  for (std::int64_t b = 0; b < part.problem.batch; ++b) {
    const std::int64_t first = (part.batch_begin + b) * length;
    for (std::int64_t i = 0; i < stripe.count; ++i) {
      result.push_back(ids[static_cast<std::size_t>(first + stripe.position(i))]);
    }
  }
  return result;
}

// How the sequences of the batch and their heads see the rectangle, taken together: nullopt when nothing attends.
std::optional<TileKind> coverage(const Problem& problem) {
  const std::int64_t sequences =
      problem.sequences_are_alike() ? std::min<std::int64_t>(problem.batch, 1) : problem.batch;
  bool all_full = true;
  bool any = false;
  for (std::int64_t b = 0; b < sequences; ++b) {
    for (std::int64_t head = 0; head < problem.schedules_per_sequence(); ++head) {
      const auto kind =
          problem.schedule(b, std::max<std::int64_t>(problem.seq_q, 1), std::max<std::int64_t>(problem.seq_k, 1), head)
              .visit(0, 0);
      any = any || kind.has_value();
      all_full = all_full && kind == TileKind::full;
    }
  }
  if (!any) {
    return std::nullopt;
  }
  return all_full ? TileKind::full : TileKind::partial;
}

// From the positions of the whole to those of a part of it.
void shift(Positions& positions, const SubProblem& part) {
  positions.batch_start += static_cast<int>(part.batch_begin);
  positions.query_start += static_cast<int>(part.query_positions.begin) * positions.query_stride;
  positions.key_start += static_cast<int>(part.key_positions.begin) * positions.key_stride;
  positions.query_stride *= static_cast<int>(part.query_positions.stride);
  positions.key_stride *= static_cast<int>(part.key_positions.stride);
}

class Cutter {
 public:
  explicit Cutter(const Problem& whole) : whole_(whole), block_(whole) {
    block_.mask = Mask::none();
    block_.output_dtype = DType::float32;
    block_.key_lengths.clear();
    block_.sinks = false;
    if (whole.dropout.threshold() == 0) {
      block_.dropout = {};
    }
    if (!whole.score_function) {
      block_.function_positions = {};
    }
  }

  // All sequences in [batch_begin, batch_begin + batch) have `keys` keys in use.
  void cut(std::int64_t batch_begin, std::int64_t batch, std::int64_t keys, const std::vector<Stripe>& query_pieces,
           const std::vector<Stripe>& key_pieces) {
    std::int64_t query_row = 0;
    for (const Stripe& queries : query_pieces) {
      std::int64_t key_row = 0;
      for (const Stripe& stored : key_pieces) {
        Stripe used = stored;
        used.count = std::clamp<std::int64_t>(ceil_div(keys - stored.begin, stored.stride), 0, stored.count);
        SubProblem part;
        part.batch_begin = batch_begin;
        part.problem.batch = batch;
        part.query_rows = {query_row, query_row + queries.count};
        part.key_rows = {key_row, key_row + used.count};
        part.query_positions = queries;
        part.key_positions = used;
        if (used.count > 0) {
          add_bands(part, keys);
        }
        key_row += stored.count;
      }
      query_row += queries.count;
    }
  }

  std::vector<SubProblem> take() { return std::move(parts_); }

 private:
  void add_bands(const SubProblem& part, std::int64_t keys) {
    const std::int64_t stride = part.query_positions.stride;
    const std::int64_t diagonal = whole_.mask.alignment().resolve(whole_.seq_q, keys);
    const std::int64_t offset = part.query_positions.begin + diagonal - part.key_positions.begin;
    const std::int64_t farthest = whole_.seq_q + whole_.seq_k + std::max(diagonal, -diagonal);
    for (const StripedBand& band : striped_bands(whole_, offset, stride, farthest)) {
      add(part, band, stride);
    }
  }

  void add(SubProblem part, const StripedBand& band, std::int64_t stride) {
    const Stripe& queries = part.query_positions;
    const Stripe& keys = part.key_positions;
    const std::int64_t batch = part.problem.batch;
    part.problem = block_;
    Problem& problem = part.problem;
    problem.batch = batch;
    problem.seq_q = queries.count;
    problem.seq_k = keys.count;
    problem.mask = band.mask;
    if (whole_.mask.has_segments()) {
      const Segments& ids = whole_.mask.segment_ids();
      problem.mask = problem.mask & Mask::segments({stripe_of(ids.query, whole_.seq_q, part, queries),
                                                    stripe_of(ids.key, whole_.seq_k, part, keys)});
      problem.mask = problem.mask.with_alignment(band.mask.alignment());
    }
    if (whole_.mask.has_blocks()) {
      const Range sequences{part.batch_begin, part.batch_begin + batch};
      problem.mask = with_blocks(problem.mask, part_of_blocks(whole_.mask.block_mask(), sequences, {&queries, 1},
                                                              {&keys, 1}, [](auto, auto) { return true; }));
    }
    const auto seen = coverage(problem);
    if (!seen) {
      return;
    }
    if (*seen == TileKind::full) {
      problem.mask = whole_.alibi ? Mask::none().with_alignment(band.mask.alignment()) : Mask::none();
    }
    if (problem.bias_shape) {
      auto& shape = *problem.bias_shape;
      const std::array<std::int64_t, 4> extents{batch, problem.heads_q, queries.count, keys.count};
      for (std::size_t axis = 0; axis < extents.size(); ++axis) {
        shape[axis] = shape[axis] == 1 ? 1 : extents[axis];
      }
    }
    Dropout& dropout = problem.dropout;
    dropout.batch_start += part.batch_begin;
    dropout.query_start += queries.begin * dropout.query_stride;
    dropout.key_start += keys.begin * dropout.key_stride;
    dropout.query_stride *= queries.stride;
    dropout.key_stride *= keys.stride;
    if (problem.score_function) {
      shift(problem.function_positions, part);
    }
    part.slope_factor = static_cast<float>(stride);
    part.distance_shift = band.distance_shift;
    parts_.push_back(std::move(part));
  }

  const Problem& whole_;
  Problem block_;  // what all parts have in common
  std::vector<SubProblem> parts_;
};

}  // namespace

std::vector<SubProblem> sub_problems(const Problem& whole, const SequenceLayout& query_layout, int query_rank,
                                     const SequenceLayout& key_layout, int key_rank) {
  const std::vector<Stripe> query_pieces = query_layout.pieces(query_rank);
  const std::vector<Stripe> key_pieces = key_layout.pieces(key_rank);
  Cutter cutter(whole);
  if (whole.key_lengths.empty()) {
    cutter.cut(0, whole.batch, whole.seq_k, query_pieces, key_pieces);
    return cutter.take();
  }
  for (std::int64_t b = 0; b < whole.batch; ++b) {  // each has a diagonal of its own
    cutter.cut(b, 1, whole.key_lengths[static_cast<std::size_t>(b)], query_pieces, key_pieces);
  }
  return cutter.take();
}

void require_distributable(const Problem& whole) {
  if (whole.ragged()) {
    throw Error(
        ErrorCode::unsupported,
        "cu_seqlens_q: a ragged problem is not spread over ranks; accepted: the same sequences packed into one, "
        "with Mask::segments");
  }
  if (whole.lengths_in_tensors || whole.paged()) {
    throw Error(ErrorCode::unsupported,
                std::string(whole.paged() ? "page_size" : "lengths_in_tensors") +
                    ": a cache of keys is not spread over ranks; accepted: key_lengths, without pages");
  }
  if (whole.dtype == DType::float64) {
    throw Error(ErrorCode::unsupported, "dtype: float64; accepted over ranks: float32, bfloat16, float16");
  }
  const std::int64_t diagonal = whole.mask.alignment().resolve(whole.seq_q, whole.seq_k);
  if (diagonal > kMostDiagonal || diagonal < -kMostDiagonal) {
    fail_argument("diagonal of the mask's alignment", diagonal, "-2^40 to 2^40 over ranks");
  }
}

}  // namespace tessera::internal
