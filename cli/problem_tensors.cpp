#include "cli/problem_tensors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace tessera::cli {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::array<double, 3> kSpecials{kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()};

// One stream of random numbers a tensor: a tensor more or less does not change the others.
enum Stream : std::uint64_t {
  kQ,
  kK,
  kV,
  kDout,
  kDlse,
  kBias,
  kSlopes,
  kSinks,
  kOut,
  kLse,
  kDq,
  kDk,
  kDv,
  kDbias,
  kLengths,
  kPages
};

StrideKind strides_of(const TensorOptions& options, Stream stream) {
  const StrideKind kind = options.strides.value_or(static_cast<StrideKind>((options.seed + stream) % kMixedKinds));
  return options.aligned16 && kind == StrideKind::padded ? StrideKind::padded16 : kind;
}

HostTensor normal_tensor(DType dtype, std::span<const std::int64_t> shape, const TensorOptions& options, Stream stream,
                         double deviation = 1.0) {
  HostTensor tensor(dtype, shape, strides_of(options, stream));
  Random random(options.seed, stream);
  const bool specials = options.specials && (stream == kQ || stream == kK || stream == kV);
  tensor.fill([&] {
    if (specials && random.chance(1.0 / 512)) {
      return kSpecials[static_cast<std::size_t>(random.between(0, 2))];
    }
    return deviation * random.normal();
  });
  return tensor;
}

DType statistics_dtype(const Problem& problem) {
  return problem.dtype == DType::float64 ? DType::float64 : DType::float32;
}

// The slopes of the ALiBi paper, 2^(-8 (h + 1) / heads), each moved a little so that no two sequences share one.
HostTensor slopes_tensor(const Problem& problem, const TensorOptions& options) {
  std::vector<std::int64_t> shape{problem.heads_q};
  if (options.alibi_per_batch) {
    shape.insert(shape.begin(), problem.batch);
  }
  HostTensor tensor(statistics_dtype(problem), shape);
  Random random(options.seed, kSlopes);
  std::int64_t n = 0;
  tensor.fill([&] {
    const auto head = static_cast<double>(n++ % problem.heads_q);
    return std::exp2(-8.0 * (head + 1) / static_cast<double>(problem.heads_q)) * (0.75 + 0.5 * random.uniform());
  });
  return tensor;
}

HostTensor bias_tensor(const Problem& problem, const TensorOptions& options) {
  std::array<std::int64_t, 4> shape = problem.bias_shape.value_or(std::array<std::int64_t, 4>{1, 1, 1, 1});
  if (options.bias_expanded) {
    shape[0] = std::min<std::int64_t>(shape[0], 1);
    shape[1] = std::min<std::int64_t>(shape[1], 1);
  }
  HostTensor tensor(problem.bias_dtype, shape, strides_of(options, kBias));
  Random random(options.seed, kBias);
  tensor.fill([&] {
    const bool hole = options.bias_holes && random.chance(0.125);
    return hole ? -kInfinity : random.normal();
  });
  return tensor;
}

HostTensor lengths_tensor(const Problem& problem, const TensorOptions& options) {
  HostTensor tensor(DType::int32, std::array{problem.batch});
  Random random(options.seed, kLengths);
  bool first = true;
  tensor.fill([&] {
    return static_cast<double>(std::exchange(first, false) ? problem.seq_k : random.between(0, problem.seq_k));
  });
  return tensor;
}

// Different pages of the pool, in random order.
HostTensor page_tensor(const Problem& problem, const TensorOptions& options) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(token_shape(problem, false, 1)[0]));
  std::iota(numbers.begin(), numbers.end(), 0);
  Random random(options.seed, kPages);
  for (std::size_t i = numbers.size() - 1; i > 0; --i) {
    std::swap(numbers[i], numbers[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)))]);
  }
  HostTensor tensor(DType::int32, std::array{problem.batch, problem.pages_per_sequence()});
  std::size_t next = 0;
  tensor.fill([&] { return static_cast<double>(numbers[next++]); });
  return tensor;
}

}  // namespace

std::vector<std::int64_t> token_shape(const Problem& problem, bool query_side, std::int64_t dim) {
  const std::int64_t heads = query_side ? problem.heads_q : problem.heads_kv;
  if (problem.ragged()) {
    return {query_side ? problem.total_q() : problem.total_k(), heads, dim};
  }
  if (problem.paged() && !query_side) {
    constexpr std::int64_t kSpare = 3;
    return {problem.batch * problem.pages_per_sequence() + kSpare, problem.page_size, heads, dim};
  }
  return {problem.batch, query_side ? problem.seq_q : problem.seq_k, heads, dim};
}

std::vector<std::int64_t> lse_shape(const Problem& problem) {
  if (problem.ragged()) {
    return {problem.heads_q, problem.total_q()};
  }
  return {problem.batch, problem.heads_q, problem.seq_q};
}

std::string strides_text(const TensorOptions& options) {
  const bool sixteen = options.aligned16 && options.strides.value_or(StrideKind::padded) == StrideKind::padded;
  return std::string(options.strides ? stride_kind_name(*options.strides) : "mixed") + (sixteen ? "16" : "");
}

Problem widened(Problem problem) {
  problem.dtype = DType::float64;
  problem.output_dtype.reset();
  problem.bias_dtype = DType::float64;
  return problem;
}

ProblemTensors::ProblemTensors(const Problem& problem, const TensorOptions& options)
    : problem_(problem), bias_expanded_(options.bias_expanded) {
  const auto queries = [&](std::int64_t dim) { return token_shape(problem, true, dim); };
  const auto keys = [&](std::int64_t dim) { return token_shape(problem, false, dim); };
  q = normal_tensor(problem.dtype, queries(problem.dim_qk), options, kQ, options.magnitude);
  k = normal_tensor(problem.dtype, keys(problem.dim_qk), options, kK, options.magnitude);
  v = normal_tensor(problem.dtype, keys(problem.dim_v), options, kV);
  dout = normal_tensor(problem.out_dtype(), queries(problem.dim_v), options, kDout);
  if (options.dlse) {
    dlse = normal_tensor(statistics_dtype(problem), lse_shape(problem), options, kDlse);
  }
  if (problem.bias_shape) {
    bias = bias_tensor(problem, options);
  }
  if (problem.alibi) {
    alibi_slopes = slopes_tensor(problem, options);
  }
  if (problem.sinks) {
    sinks = normal_tensor(statistics_dtype(problem), std::array{problem.heads_q}, options, kSinks);
  }
  if (problem.lengths_in_tensors) {
    key_lengths = lengths_tensor(problem, options);
  }
  if (problem.paged()) {
    page_table = page_tensor(problem, options);
  }
  allocate_outputs(options);
}

void ProblemTensors::allocate_outputs(const TensorOptions& options) {
  const auto tokens = [&](bool query_side, std::int64_t dim, Stream stream) {
    return HostTensor(problem_.out_dtype(), token_shape(problem_, query_side, dim), strides_of(options, stream));
  };
  out = tokens(true, problem_.dim_v, kOut);
  lse = HostTensor(statistics_dtype(problem_), lse_shape(problem_), strides_of(options, kLse));
  dq = tokens(true, problem_.dim_qk, kDq);
  dk = tokens(false, problem_.dim_qk, kDk);
  dv = tokens(false, problem_.dim_v, kDv);
  if (problem_.bias_shape) {
    dbias = HostTensor(statistics_dtype(problem_), *problem_.bias_shape, strides_of(options, kDbias));
  }
  if (problem_.sinks) {
    dsinks = HostTensor(statistics_dtype(problem_), std::array{problem_.heads_q});
  }
}

ProblemTensors ProblemTensors::widened() const {
  ProblemTensors result;
  result.problem_ = cli::widened(problem_);
  result.bias_expanded_ = bias_expanded_;
  const auto widen = [](const HostTensor& tensor) { return tensor.converted(DType::float64); };
  result.q = widen(q);
  result.k = widen(k);
  result.v = widen(v);
  result.dout = widen(dout);
  result.dlse = widen(dlse);
  result.bias = widen(bias);
  result.alibi_slopes = widen(alibi_slopes);
  result.sinks = widen(sinks);
  result.key_lengths = key_lengths.converted(DType::int32);
  result.page_table = page_table.converted(DType::int32);
  result.allocate_outputs({});
  return result;
}

ScoreTensors ProblemTensors::score() const {
  ScoreTensors tensors;
  if (problem_.bias_shape) {
    tensors.bias = bias_expanded_ ? bias.expanded(*problem_.bias_shape) : bias.const_view();
  }
  tensors.alibi_slopes = alibi_slopes.const_view();
  tensors.sinks = sinks.const_view();
  return tensors;
}

ForwardTensors ProblemTensors::forward() const {
  return {q.const_view(), k.const_view(), v.const_view(),           out.view(),
          lse.view(),     score(),        key_lengths.const_view(), page_table.const_view()};
}

BackwardTensors ProblemTensors::backward() const {
  BackwardTensors tensors;
  tensors.q = q.const_view();
  tensors.k = k.const_view();
  tensors.v = v.const_view();
  tensors.out = out.const_view();
  tensors.lse = lse.const_view();
  tensors.dout = dout.const_view();
  tensors.dlse = dlse.const_view();
  tensors.dq = dq.view();
  tensors.dk = dk.view();
  tensors.dv = dv.view();
  tensors.dbias = dbias.view();
  tensors.dsinks = dsinks.view();
  tensors.score = score();
  return tensors;
}

void ProblemTensors::poison_outputs() {
  for (HostTensor* tensor : {&out, &lse, &dq, &dk, &dv, &dbias, &dsinks}) {
    tensor->poison();
  }
}

void ProblemTensors::for_each_output(Pass pass,
                                     const std::function<void(const std::string&, const HostTensor&)>& visit) const {
  const auto offer = [&visit](const char* name, const HostTensor& tensor) {
    if (!tensor.absent()) {
      visit(name, tensor);
    }
  };
  if (pass == Pass::forward) {
    offer("O", out);
    offer("LSE", lse);
    return;
  }
  offer("dQ", dq);
  offer("dK", dk);
  offer("dV", dv);
  offer("dbias", dbias);
  offer("dsinks", dsinks);
}

}  // namespace tessera::cli
