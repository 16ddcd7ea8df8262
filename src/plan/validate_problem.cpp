#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/fail.h"
#include "plan/validate.h"
#include "tessera/problem.h"

namespace tessera {

namespace {

using internal::checked_mul;
using internal::fail_argument;

constexpr std::int64_t kMaxDim = 512;
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 32;

void require_at_least(std::string_view name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    fail_argument(name, value, std::to_string(least) + " or more");
  }
}

void validate_dtypes(const Problem& problem) {
  if (problem.dtype == DType::int32) {
    fail_argument("dtype", dtype_name(problem.dtype), "float32, bfloat16, float16, float64");
  }
  if (problem.dtype == DType::float64 && problem.output_dtype.value_or(DType::float64) != DType::float64) {
    fail_argument("output_dtype", dtype_name(*problem.output_dtype), "float64 when dtype is float64");
  }
  if (problem.output_dtype && *problem.output_dtype != problem.dtype && *problem.output_dtype != DType::float32) {
    fail_argument("output_dtype", dtype_name(*problem.output_dtype),
                  "float32 or the problem's dtype, " + std::string(dtype_name(problem.dtype)));
  }
  if (problem.bias_shape && problem.bias_dtype != DType::float32 && problem.bias_dtype != problem.dtype) {
    fail_argument("bias_dtype", dtype_name(problem.bias_dtype),
                  "float32 or the problem's dtype, " + std::string(dtype_name(problem.dtype)));
  }
}

void validate_extents(const Problem& problem) {
  require_at_least("batch", problem.batch, 0);
  require_at_least("seq_q", problem.seq_q, 0);
  require_at_least("seq_k", problem.seq_k, 0);
  require_at_least("heads_q", problem.heads_q, 1);
  require_at_least("heads_kv", problem.heads_kv, 1);
  if (problem.heads_q % problem.heads_kv != 0) {
    fail_argument("heads_kv", problem.heads_kv, "divisors of heads_q, " + std::to_string(problem.heads_q));
  }
  for (const auto& [name, dim] : {std::pair{"dim_qk", problem.dim_qk}, std::pair{"dim_v", problem.dim_v}}) {
    if (dim < 1 || dim > kMaxDim) {
      fail_argument(name, dim, "1 to 512");
    }
  }
  const auto check_size = [&](std::int64_t seq, std::int64_t heads, std::int64_t dim, std::string_view what) {
    checked_mul(checked_mul(checked_mul(problem.batch, seq, what), heads, what), dim * 8, what);
  };
  check_size(problem.seq_q, problem.heads_q, kMaxDim, "batch * seq_q * heads_q * dim");
  check_size(problem.seq_k, problem.heads_kv, kMaxDim, "batch * seq_k * heads_kv * dim");
  checked_mul(problem.seq_q, problem.seq_k, "seq_q * seq_k");
}

void validate_cumulative(std::string_view name, const std::vector<std::int64_t>& values, std::int64_t batch,
                         std::int64_t longest_expected, std::string_view longest_name) {
  if (static_cast<std::int64_t>(values.size()) != batch + 1) {
    fail_argument(name, std::to_string(values.size()) + " numbers", "batch + 1 numbers, " + std::to_string(batch + 1));
  }
  if (values.front() != 0) {
    fail_argument(std::string(name) + "[0]", values.front(), "0");
  }
  std::int64_t longest = 0;
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (values[i] < values[i - 1]) {
      fail_argument(std::string(name) + "[" + std::to_string(i) + "]", values[i],
                    "at least its predecessor, " + std::to_string(values[i - 1]));
    }
    longest = std::max(longest, values[i] - values[i - 1]);
  }
  if (longest != longest_expected) {
    fail_argument(longest_name, longest_expected,
                  "the longest length in " + std::string(name) + ", " + std::to_string(longest));
  }
}

void validate_ragged(const Problem& problem) {
  if (problem.ragged() != !problem.cu_seqlens_k.empty()) {
    fail_argument(problem.ragged() ? "cu_seqlens_k" : "cu_seqlens_q", "no numbers",
                  "both cu_seqlens_q and cu_seqlens_k, or neither");
  }
  if (problem.ragged()) {
    validate_cumulative("cu_seqlens_q", problem.cu_seqlens_q, problem.batch, problem.seq_q, "seq_q");
    validate_cumulative("cu_seqlens_k", problem.cu_seqlens_k, problem.batch, problem.seq_k, "seq_k");
  }
  if (problem.key_lengths.empty()) {
    return;
  }
  if (static_cast<std::int64_t>(problem.key_lengths.size()) != problem.batch) {
    fail_argument("key_lengths", std::to_string(problem.key_lengths.size()) + " numbers",
                  "one for each sequence of the batch, " + std::to_string(problem.batch));
  }
  for (std::size_t b = 0; b < problem.key_lengths.size(); ++b) {
    const std::int64_t longest =
        problem.ragged() ? problem.cu_seqlens_k[b + 1] - problem.cu_seqlens_k[b] : problem.seq_k;
    if (problem.key_lengths[b] < 0 || problem.key_lengths[b] > longest) {
      fail_argument("key_lengths[" + std::to_string(b) + "]", problem.key_lengths[b],
                    "0 to " + std::to_string(longest));
    }
  }
}

void validate_cache(const Problem& problem) {
  const auto refuse_beside = [&](std::string_view field, std::string_view value, std::string_view without) {
    if (problem.ragged()) {
      fail_argument(field, std::string(value) + " with cu_seqlens_q", std::string(without) + ", or the batch layout");
    }
  };
  if (problem.lengths_in_tensors) {
    refuse_beside("lengths_in_tensors", "true", "false");
    if (!problem.key_lengths.empty()) {
      fail_argument("key_lengths", std::to_string(problem.key_lengths.size()) + " numbers",
                    "none, since lengths_in_tensors is true");
    }
  }
  if (problem.paged()) {
    internal::check_page_size("page_size", problem.page_size);
    refuse_beside("page_size", std::to_string(problem.page_size), "0");
  }
}

void validate_segment_side(const Problem& problem, std::string_view side, const std::vector<std::int32_t>& ids,
                           std::int64_t total, bool is_query) {
  const std::string name = "segments." + std::string(side);
  if (static_cast<std::int64_t>(ids.size()) != total) {
    fail_argument(name, std::to_string(ids.size()) + " numbers", "one for each token, " + std::to_string(total));
  }
  if (ids.empty()) {  // a batch of empty sequences, of any size
    return;
  }
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    const std::int64_t begin = is_query ? span.query_row : span.key_row;
    const std::int64_t length = is_query ? span.queries : span.keys;
    const auto first = ids.begin() + begin;
    const auto descent = std::adjacent_find(first, first + length, std::greater<>());
    if (descent != first + length) {
      fail_argument(name + "[" + std::to_string(descent - ids.begin() + 1) + "]", std::int64_t{*(descent + 1)},
                    "at least its predecessor in the sequence, " + std::to_string(*descent));
    }
  }
}

void validate_blocks(const Problem& problem) {
  const BlockMask& blocks = problem.mask.block_mask();
  const auto check = [](const char* name, std::int64_t value, std::int64_t wanted, const std::string& accepted) {
    if (value != wanted) {
      fail_argument(name, value, accepted + ", " + std::to_string(wanted));
    }
  };
  check("block mask: grid.queries", blocks.grid().queries, problem.seq_q, "seq_q");
  check("block mask: grid.keys", blocks.grid().keys, problem.seq_k, "seq_k");
  if (blocks.batch() != 1) {
    check("block mask: batch", blocks.batch(), problem.batch, "1 or the batch");
  }
  if (blocks.heads() != 1) {
    check("block mask: heads", blocks.heads(), problem.heads_q, "1 or heads_q");
  }
}

// Sums of a position, the diagonal and a side of the band stay far below 2^63.
void validate_band(const Mask& mask) {
  constexpr std::int64_t kMost = std::int64_t{1} << 60;
  const std::int64_t diagonal = mask.alignment().kind == Alignment::Kind::at ? mask.alignment().diagonal : 0;
  if (diagonal < -kMost || diagonal > kMost) {
    fail_argument("mask diagonal", diagonal, "-2^60 to 2^60");
  }
  for (const auto& [name, side] : {std::pair{"window left", mask.left()}, std::pair{"window right", mask.right()}}) {
    if (side != Mask::kUnlimited && side > kMost) {
      fail_argument(name, side, "0 to 2^60, or unlimited");
    }
  }
}

void validate_mask(const Problem& problem) {
  validate_band(problem.mask);
  if (problem.mask.has_blocks()) {
    validate_blocks(problem);
  }
  if (!problem.mask.has_segments()) {
    return;
  }
  const Segments& segments = problem.mask.segment_ids();
  validate_segment_side(problem, "query", segments.query, problem.total_q(), true);
  validate_segment_side(problem, "key", segments.key, problem.total_k(), false);
}

void validate_score(const Problem& problem) {
  if (problem.scale && !std::isfinite(*problem.scale)) {
    fail_argument("scale", static_cast<double>(*problem.scale), "finite numbers");
  }
  if (!(problem.softcap >= 0.0F) || !std::isfinite(problem.softcap)) {
    fail_argument("softcap", static_cast<double>(problem.softcap), "0 (none) or a positive finite number");
  }
  if (problem.bias_shape) {
    const std::array<std::pair<const char*, std::int64_t>, 4> whole{
        {{"batch", problem.batch}, {"heads_q", problem.heads_q}, {"seq_q", problem.seq_q}, {"seq_k", problem.seq_k}}};
    for (std::size_t axis = 0; axis < whole.size(); ++axis) {
      const std::int64_t extent = (*problem.bias_shape)[axis];
      if (extent != 1 && extent != whole[axis].second) {
        fail_argument("bias_shape[" + std::to_string(axis) + "]", extent,
                      std::string("1 or ") + whole[axis].first + ", " + std::to_string(whole[axis].second));
      }
    }
  }
}

// Functions count positions in 32 bits.
void validate_functions(const Problem& problem) {
  if (!problem.score_function && !problem.mask_function) {
    return;
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const Positions& at = problem.function_positions;
  const auto check = [](const std::string& of, std::int64_t start, std::int64_t stride, std::int64_t length) {
    const std::string name = "function_positions." + of;
    const std::int64_t last = std::max<std::int64_t>(length, 1) - 1;
    if (stride < 1 || stride > kMost / std::max<std::int64_t>(last, 1)) {
      fail_argument(
          name + "_stride", stride,
          "1 to " + std::to_string(kMost / std::max<std::int64_t>(last, 1)) + ", so that positions stay below 2^31");
    }
    if (start < 0 || start > kMost - last * stride) {
      fail_argument(name + "_start", start,
                    "0 to " + std::to_string(kMost - last * stride) + ", so that positions stay below 2^31");
    }
  };
  check("batch", at.batch_start, 1, problem.batch);
  check("head", at.head_start, 1, problem.heads_q);
  check("query", at.query_start, at.query_stride, problem.seq_q);
  check("key", at.key_start, at.key_stride, problem.seq_k);
}

void validate_dropout(const Problem& problem) {
  const Dropout& dropout = problem.dropout;
  if (!(dropout.probability >= 0.0 && dropout.probability <= 1.0)) {
    fail_argument("dropout.probability", dropout.probability, "0 to 1");
  }
  const auto check_start = [](std::string_view name, std::int64_t start, std::int64_t length) {
    if (start < 0 || start > kMaxPosition - length) {
      fail_argument(name, start, "0 to 2^32 less the length, " + std::to_string(kMaxPosition - length));
    }
  };
  const auto reach = [](std::string_view name, std::int64_t stride, std::int64_t length) {
    const std::int64_t most = length < 2 ? kMaxPosition : (kMaxPosition - 1) / (length - 1);
    if (stride < 1 || stride > most) {
      fail_argument(name, stride, "1 to " + std::to_string(most) + ", so that positions stay below 2^32");
    }
    return length == 0 ? 0 : (length - 1) * stride + 1;
  };
  check_start("dropout.query_start", dropout.query_start,
              reach("dropout.query_stride", dropout.query_stride, problem.seq_q));
  check_start("dropout.key_start", dropout.key_start, reach("dropout.key_stride", dropout.key_stride, problem.seq_k));
  check_start("dropout.head_start", dropout.head_start, problem.heads_q);
  check_start("dropout.batch_start", dropout.batch_start, problem.batch);
}

}  // namespace

void validate(const Problem& problem) {
  validate_dtypes(problem);
  validate_extents(problem);
  validate_ragged(problem);
  validate_cache(problem);
  validate_mask(problem);
  validate_score(problem);
  validate_functions(problem);
  validate_dropout(problem);
}

}  // namespace tessera
