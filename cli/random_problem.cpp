#include "cli/random_problem.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "cli/random.h"
#include "core/fail.h"

namespace tessera::cli {

namespace {

// (query, key) pairs times head dims: bounds the time of the oracle, which visits each in double precision.
constexpr std::int64_t kMostWork = 1 << 20;
constexpr std::int64_t kMostWorkOfSm90 = 1 << 23;
constexpr std::int64_t kDimMultipleOfSm90 = 8;
constexpr std::int64_t kMostListedDimOfSm90 = 128;

template <class T, std::size_t N>
T pick(Random& random, const std::array<T, N>& values) {
  return values[static_cast<std::size_t>(random.between(0, N - 1))];
}

std::int64_t draw_length(Random& random) {
  // One below, at and above the widths of vectors and tiles.
  constexpr std::array<std::int64_t, 24> kEdges{7,  8,  9,  15, 16, 17, 31,  32,  33,  47,  48,  49,
                                                63, 64, 65, 95, 96, 97, 127, 128, 129, 255, 256, 257};
  const double kind = random.uniform();
  if (kind < 0.04) {
    return 0;
  }
  if (kind < 0.12) {
    return 1;
  }
  if (kind < 0.62) {
    return random.between(2, 80);
  }
  if (kind < 0.85) {
    return pick(random, kEdges);
  }
  return kind < 0.95 ? random.between(80, 300) : random.between(300, 700);
}

std::int64_t draw_dim(Random& random) {
  constexpr std::array<std::int64_t, 12> kCommon{16, 24, 32, 40, 64, 64, 80, 96, 128, 128, 192, 256};
  constexpr std::array<std::int64_t, 14> kOdd{1, 2, 3, 5, 7, 8, 15, 17, 31, 33, 65, 100, 129, 200};
  const double kind = random.uniform();
  if (kind < 0.02) {
    return random.between(257, 512);
  }
  return kind < 0.5 ? pick(random, kCommon) : pick(random, kOdd);
}

void draw_dtypes(Random& random, Problem& problem) {
  problem.dtype = pick(random, std::array{DType::float32, DType::float32, DType::bfloat16, DType::float16});
  if (problem.dtype != DType::float32 && random.chance(0.3)) {
    problem.output_dtype = DType::float32;
  }
}

void draw_heads(Random& random, Problem& problem) {
  problem.heads_kv = random.between(1, 3);
  problem.heads_q = problem.heads_kv * pick(random, std::array<std::int64_t, 8>{1, 1, 1, 1, 2, 3, 4, 8});
}

std::int64_t work(const Problem& problem) {
  std::int64_t pairs = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    pairs += span.queries * span.keys;
  }
  return pairs * problem.heads_q * (problem.dim_qk + problem.dim_v);
}

void take_one_head(Problem& problem) {
  problem.heads_q = problem.group_size() > 1 ? 2 : 1;
  problem.heads_kv = 1;
}

// Smaller head dims, then fewer heads, until the problem is small enough.
void limit_work(Problem& problem) {
  while (work(problem) > kMostWork && problem.dim_qk + problem.dim_v > 16) {
    problem.dim_qk = (problem.dim_qk + 1) / 2;
    problem.dim_v = (problem.dim_v + 1) / 2;
  }
  if (work(problem) > kMostWork) {
    take_one_head(problem);
  }
}

// Fewer heads, then smaller head dims.
void limit_work_of_sm90(Problem& problem) {
  if (work(problem) > kMostWorkOfSm90) {
    take_one_head(problem);
  }
  const auto half = [](std::int64_t dim) { return internal::round_up(dim / 2, kDimMultipleOfSm90); };
  while (work(problem) > kMostWorkOfSm90 && problem.dim_qk + problem.dim_v > 2 * kDimMultipleOfSm90) {
    problem.dim_qk = half(problem.dim_qk);
    problem.dim_v = half(problem.dim_v);
  }
}

std::vector<std::int64_t> cumulative(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> result(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), result.begin() + 1);
  return result;
}

void draw_lengths(Random& random, Problem& problem) {
  const bool self = random.chance(0.4);
  problem.batch = random.chance(0.01) ? 0 : random.between(1, 3);
  if (random.chance(0.25)) {
    std::vector<std::int64_t> queries(static_cast<std::size_t>(problem.batch));
    std::vector<std::int64_t> keys(queries.size());
    for (std::size_t b = 0; b < queries.size(); ++b) {
      queries[b] = draw_length(random);
      keys[b] = self ? queries[b] : draw_length(random);
    }
    set_ragged(problem, cumulative(queries), cumulative(keys));
  } else {
    problem.seq_q = draw_length(random);
    problem.seq_k = self ? problem.seq_q : draw_length(random);
  }
  if (random.chance(0.2)) {
    std::vector<std::int64_t> lengths;
    lengths.reserve(static_cast<std::size_t>(problem.batch));
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      lengths.push_back(random.between(0, problem.sequence(b).keys));
    }
    problem.key_lengths = std::move(lengths);
  }
}

// Numbers of a sequence of documents of random lengths, some of them empty.
void append_documents(Random& random, std::int64_t tokens, std::vector<std::int32_t>& ids) {
  std::int32_t document = 0;
  while (tokens > 0) {
    const std::int64_t length = random.chance(0.15) ? 0 : random.between(1, std::min<std::int64_t>(tokens, 40));
    ids.insert(ids.end(), static_cast<std::size_t>(length), document++);
    tokens -= length;
  }
}

Mask draw_segments(Random& random, const Problem& problem) {
  Segments segments;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const auto row = static_cast<std::size_t>(b);
    const SequenceSpan span = problem.sequence(b);
    const std::int64_t stored_keys =
        problem.ragged() ? problem.cu_seqlens_k[row + 1] - problem.cu_seqlens_k[row] : problem.seq_k;
    const std::size_t first = segments.query.size();
    append_documents(random, span.queries, segments.query);
    if (span.queries == stored_keys && random.chance(0.5)) {
      segments.key.insert(segments.key.end(), segments.query.begin() + static_cast<std::ptrdiff_t>(first),
                          segments.query.end());
    } else {
      append_documents(random, stored_keys, segments.key);
    }
  }
  return Mask::segments(std::move(segments));
}

// Blocks of any size, one pattern or one for each head, sequence or both.
Mask draw_blocks(Random& random, const Problem& problem) {
  const BlockGrid grid{problem.seq_q, problem.seq_k, 16 * random.between(1, 9), 16 * random.between(1, 9)};
  const bool by_head = random.chance(0.4);
  const bool by_sequence = problem.batch > 0 && random.chance(0.2);
  std::vector<BlockMask> sequences;
  for (std::int64_t b = 0; b < (by_sequence ? problem.batch : 1); ++b) {
    std::vector<BlockMask> heads;
    for (std::int64_t head = 0; head < (by_head ? problem.heads_q : 1); ++head) {
      const double density = random.chance(0.1) ? 0.0 : random.uniform();
      heads.push_back(block_patterns::random(grid, density, static_cast<std::uint64_t>(random.between(0, 1000))));
    }
    sequences.push_back(BlockMask::over_heads(heads));
  }
  return Mask::blocks(BlockMask::over_batch(sequences));
}

Alignment draw_alignment(Random& random, const Problem& problem) {
  Alignment alignment;
  const double place = random.uniform();
  if (place > 0.9) {
    alignment = Alignment::at(random.between(-problem.seq_q, problem.seq_k));
  } else if (place > 0.65) {
    alignment = Alignment::top_left();
  }
  return alignment;
}

Mask draw_band(Random& random) {
  const auto side = [&] { return random.chance(0.2) ? Mask::kUnlimited : random.between(0, 100); };
  const double kind = random.uniform();
  if (kind < 0.35) {
    return Mask::causal();
  }
  if (kind < 0.65) {
    const std::int64_t left = side();
    return Mask::window(left, side());
  }
  return Mask::none();
}

void draw_mask(Random& random, Problem& problem) {
  const Alignment alignment = draw_alignment(random, problem);
  Mask mask = draw_band(random);
  if (random.chance(0.2)) {
    mask = mask & draw_segments(random, problem);
  }
  if (problem.seq_q > 0 && problem.seq_k > 0 && random.chance(0.2)) {
    mask = mask & draw_blocks(random, problem);
  }
  problem.mask = mask.with_alignment(alignment);
}

void draw_scores(Random& random, Problem& problem) {
  if (random.chance(0.3)) {
    problem.scale = problem.softmax_scale() * static_cast<float>(random.uniform() * 2.5 - 0.5);
  }
  if (random.chance(0.2)) {
    problem.softcap = static_cast<float>(0.5 + 20 * random.uniform());
  }
  problem.alibi = random.chance(0.2);
  problem.sinks = random.chance(0.2);
  if (random.chance(0.25)) {
    const auto extent = [&](std::int64_t whole) { return random.chance(0.5) ? whole : 1; };
    problem.bias_shape = {extent(problem.batch), extent(problem.heads_q), extent(problem.seq_q), extent(problem.seq_k)};
    problem.bias_dtype = random.chance(0.5) ? problem.dtype : DType::float32;
  }
}

void draw_dropout(Random& random, Problem& problem) {
  if (!random.chance(0.2)) {
    return;
  }
  problem.dropout.probability = random.chance(0.05) ? 1.0 : 0.9 * random.uniform();
  problem.dropout.seed = random.next();
  if (random.chance(0.3)) {
    problem.dropout.query_start = random.between(0, 1 << 30);
    problem.dropout.key_start = random.between(0, 1 << 30);
    problem.dropout.head_start = random.between(0, 100);
    problem.dropout.batch_start = random.between(0, 100);
  }
}

TensorOptions draw_tensors(Random& random) {
  TensorOptions options;
  options.seed = random.next();
  const std::int64_t kind = random.between(0, kMixedKinds + 1);
  options.strides = kind >= kMixedKinds ? std::nullopt : std::optional(static_cast<StrideKind>(kind));
  options.magnitude = pick(random, std::array{1.0, 1.0, 1.0, 0.25, 1.5});
  options.alibi_per_batch = random.chance(0.5);
  options.dlse = random.chance(0.3);
  options.bias_holes = random.chance(0.2);
  options.bias_expanded = random.chance(0.3);
  options.specials = random.chance(0.04);
  return options;
}

std::int64_t draw_dim_of_sm90(Random& random) {
  constexpr std::array<std::int64_t, 8> kCommon{64, 64, 96, 128, 128, 192, 256, 256};
  return random.chance(0.6) ? pick(random, kCommon) : kDimMultipleOfSm90 * random.between(1, 32);
}

RandomProblem draw_for_sm90(Random& random) {
  RandomProblem result;
  Problem& problem = result.problem;
  problem.dtype = random.chance(0.6) ? DType::bfloat16 : DType::float16;
  draw_heads(random, problem);
  problem.dim_qk = draw_dim_of_sm90(random);
  problem.dim_v = random.chance(0.7) ? problem.dim_qk : draw_dim_of_sm90(random);
  draw_lengths(random, problem);
  limit_work_of_sm90(problem);
  const Alignment alignment = draw_alignment(random, problem);
  problem.mask = draw_band(random).with_alignment(alignment);
  if (random.chance(0.3)) {
    problem.scale = problem.softmax_scale() * static_cast<float>(0.1 + 1.9 * random.uniform());
  }
  const TensorOptions drawn = draw_tensors(random);
  result.tensors.seed = drawn.seed;
  result.tensors.strides = drawn.strides == StrideKind::padded ? StrideKind::padded16 : drawn.strides;
  result.tensors.aligned16 = !drawn.strides;
  result.tensors.magnitude = drawn.magnitude;
  result.tensors.dlse = drawn.dlse;
  const bool listed = std::max(problem.dim_qk, problem.dim_v) <= kMostListedDimOfSm90;
  if (listed && random.chance(0.25)) {
    problem.mask = problem.mask & draw_segments(random, problem);
  }
  if (listed && problem.seq_q > 0 && problem.seq_k > 0 && random.chance(0.3)) {
    problem.mask = problem.mask & draw_blocks(random, problem);
  }
  return result;
}

}  // namespace

RandomProblem random_problem(std::uint64_t seed, std::uint64_t index, ProblemSpace space) {
  Random random(seed, index);
  if (space == ProblemSpace::sm90) {
    return draw_for_sm90(random);
  }
  RandomProblem result;
  Problem& problem = result.problem;
  draw_dtypes(random, problem);
  draw_heads(random, problem);
  problem.dim_qk = draw_dim(random);
  problem.dim_v = random.chance(0.7) ? problem.dim_qk : draw_dim(random);
  draw_lengths(random, problem);
  limit_work(problem);
  draw_mask(random, problem);
  draw_scores(random, problem);
  draw_dropout(random, problem);
  result.tensors = draw_tensors(random);
  return result;
}

std::vector<std::string> features_of(const RandomProblem& random) {
  const auto& [problem, tensors] = random;
  std::vector<std::string> features{std::string(dtype_name(problem.dtype))};
  const auto add = [&features](bool present, const char* name) {
    if (present) {
      features.emplace_back(name);
    }
  };
  bool empty = problem.batch == 0;
  bool single = false;
  bool blind_rows = false;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const SequenceSpan span = problem.sequence(b);
    empty = empty || span.queries == 0 || span.keys == 0;
    single = single || span.queries == 1 || span.keys == 1;
    const TileSchedule schedule =
        problem.schedule(b, std::max<std::int64_t>(span.queries, 1), std::max<std::int64_t>(span.keys, 1));
    for (std::int64_t query = 0; query < span.queries && !blind_rows; ++query) {
      blind_rows = span.keys > 0 && schedule.keys_of(query).empty();
    }
  }
  const Mask& mask = problem.mask;
  const bool causal = mask.left() == Mask::kUnlimited && mask.right() == 0;
  add(problem.out_dtype() != problem.dtype, "float32 output");
  add(empty, "empty sequence");
  add(single, "length 1");
  add(problem.ragged(), "ragged");
  add(!problem.key_lengths.empty(), "key lengths");
  add(problem.heads_q != problem.heads_kv, "grouped heads");
  add(problem.dim_qk != problem.dim_v, "dim-v differs");
  add(causal, "causal");
  add(mask.has_band() && !causal, "window");
  add(mask.has_segments(), "segments");
  add(mask.has_blocks(), "blocks");
  add(mask.has_blocks() && mask.block_mask().heads() > 1, "blocks by head");
  add(mask.alignment().kind == Alignment::Kind::top_left, "top-left");
  add(mask.alignment().kind == Alignment::Kind::at, "diagonal");
  add(blind_rows, "masked rows");
  add(problem.scale.has_value(), "scale");
  add(problem.softcap > 0, "softcap");
  add(problem.alibi, "alibi");
  add(problem.sinks, "sinks");
  add(problem.bias_shape.has_value(), "bias");
  add(problem.bias_shape && tensors.bias_holes, "-inf in bias");
  add(problem.dropout.probability > 0, "dropout");
  add(tensors.dlse, "dLSE");
  add(tensors.strides != StrideKind::packed, "strided");
  add(tensors.specials, "NaN and inf");
  return features;
}

}  // namespace tessera::cli
