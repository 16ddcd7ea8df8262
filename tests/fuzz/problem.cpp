// Any Problem is either refused with an Error that has a message, or valid; what is valid and tiny runs, forward and
// backward, and agrees with the oracle.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cli/compare.h"
#include "fuzz/bytes.h"
#include "tessera/error.h"
#include "tessera/plan.h"

namespace {

using tessera::Alignment;
using tessera::DType;
using tessera::Mask;
using tessera::Problem;
using tessera::fuzz::Bytes;

constexpr std::int64_t kMostWork = 1 << 14;  // elements of any tensor, and pairs

// Mostly what is asked for, now and then anything.
std::int64_t extent(Bytes& bytes, std::int64_t low, std::int64_t high) {
  const std::int64_t kind = bytes.between(0, 31);
  return kind == 0 ? bytes.word() : kind == 1 ? -1 : bytes.between(low, high);
}

std::vector<std::int64_t> cumulative(Bytes& bytes, std::int64_t sequences) {
  std::vector<std::int64_t> result = {extent(bytes, 0, 0)};
  for (std::int64_t n = 0; n < sequences; ++n) {
    result.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(result.back()) +
                                               static_cast<std::uint64_t>(extent(bytes, 0, 12))));
  }
  return result;
}

DType dtype(Bytes& bytes) { return static_cast<DType>(bytes.between(0, 3)); }

Mask mask(Bytes& bytes) {
  const Alignment alignment = bytes.flag() ? Alignment::bottom_right() : Alignment::at(extent(bytes, 0, 20) / 2);
  const std::int64_t left = bytes.flag() ? Mask::kUnlimited : extent(bytes, 0, 20);
  const std::int64_t right = bytes.flag() ? Mask::kUnlimited : extent(bytes, 0, 20);
  Mask result = Mask::window(left, right, alignment);
  if (bytes.between(0, 3) == 0) {
    tessera::Segments segments;
    for (std::int64_t n = bytes.between(0, 60); n > 0; --n) segments.query.push_back(bytes.byte() / 32);
    for (std::int64_t n = bytes.between(0, 60); n > 0; --n) segments.key.push_back(bytes.byte() / 32);
    result = result & Mask::segments(segments);
  }
  return result;
}

void draw_scores(Bytes& bytes, Problem& problem) {
  if (bytes.flag()) {
    problem.scale = bytes.flag() ? 0.25F : bytes.real();
  }
  problem.softcap = bytes.flag() ? 0.0F : bytes.flag() ? 3.0F : bytes.real();
  problem.alibi = bytes.flag();
  problem.sinks = bytes.flag();
  if (bytes.flag()) {
    problem.bias_shape = {extent(bytes, 1, 2), extent(bytes, 1, 4), extent(bytes, 1, 12), extent(bytes, 1, 12)};
    problem.bias_dtype = dtype(bytes);
  }
  if (bytes.flag()) {
    problem.dropout.probability = bytes.flag() ? bytes.byte() / 255.0 : bytes.real();
    problem.dropout.seed = static_cast<std::uint64_t>(bytes.word());
    problem.dropout.query_start = extent(bytes, 0, 255);
    problem.dropout.key_start = extent(bytes, 0, 255);
    problem.dropout.head_start = extent(bytes, 0, 255);
    problem.dropout.batch_start = extent(bytes, 0, 255);
  }
}

Problem draw_problem(Bytes& bytes) {
  Problem problem;
  problem.dtype = dtype(bytes);
  if (bytes.flag()) {
    problem.output_dtype = dtype(bytes);
  }
  problem.batch = extent(bytes, 0, 3);
  problem.heads_kv = extent(bytes, 1, 3);
  problem.heads_q = bytes.flag() ? extent(bytes, 1, 6) : problem.heads_kv;
  problem.dim_qk = extent(bytes, 1, 40);
  problem.dim_v = extent(bytes, 1, 40);
  problem.seq_q = extent(bytes, 0, 40);
  problem.seq_k = extent(bytes, 0, 40);
  if (bytes.between(0, 3) == 0) {
    problem.cu_seqlens_q = cumulative(bytes, bytes.between(0, 3));
    problem.cu_seqlens_k = cumulative(bytes, bytes.between(0, 3));
    if (bytes.between(0, 7) > 0) {
      set_ragged(problem, problem.cu_seqlens_q, problem.cu_seqlens_k);
    }
  }
  for (std::int64_t n = bytes.between(0, 3) == 0 ? bytes.between(0, 3) : 0; n > 0; --n) {
    problem.key_lengths.push_back(extent(bytes, 0, 12));
  }
  problem.mask = mask(bytes);
  draw_scores(bytes, problem);
  return problem;
}

// Only of a valid problem: no product overflows.
bool tiny(const Problem& problem) {
  if (problem.batch > 8 || problem.heads_q > 16 || problem.seq_q > 64 || problem.seq_k > 64) {
    return false;
  }
  const std::int64_t tokens = problem.total_q() * problem.heads_q + problem.total_k() * problem.heads_kv;
  return tokens * (problem.dim_qk + problem.dim_v) <= kMostWork &&
         problem.batch * problem.heads_q * problem.seq_q * problem.seq_k <= kMostWork;
}

// Scales and caps that leave float32 room for the exponents, of scores and of gradients, are compared; others have to run without a fault.
bool comparable(const Problem& problem) {
  const float scale = std::abs(problem.softmax_scale());
  const bool ordinary_scale = scale == 0.0F || (scale >= 1e-3F && scale <= 1.0F);
  const Alignment& alignment = problem.mask.alignment();  // ALiBi's distances are differences of positions
  const bool near = alignment.kind != Alignment::Kind::at || (alignment.diagonal > -1000 && alignment.diagonal < 1000);
  return problem.dtype != DType::float64 && ordinary_scale && (near || !problem.alibi) &&
         (problem.softcap == 0.0F || (problem.softcap > 0.1F && problem.softcap < 100.0F));
}

void fail(const Problem& problem, const std::string& what) {
  std::fprintf(stderr, "%s\n  %s\n", what.c_str(), problem.describe().c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  Problem problem;
  try {
    problem = draw_problem(bytes);
    tessera::validate(problem);
  } catch (const tessera::Error& error) {
    if (error.code() != tessera::ErrorCode::invalid_argument || std::string(error.what()).empty()) {
      fail(problem, std::string("not a refusal of an argument: ") + error.what());
    }
    return 0;
  }
  if (problem.describe().empty() || !tiny(problem)) {
    return 0;
  }
  tessera::cli::CheckOptions options;
  options.plan.threads = 1;
  options.tensors.seed = bytes.byte();
  options.tensors.dlse = bytes.flag();
  options.tensors.strides.reset();
  const tessera::cli::CheckResult result = tessera::cli::check_problem(problem, options);
  for (const tessera::cli::OutputCheck& check : result.outputs) {
    if (!check.ok() && comparable(problem)) {
      fail(problem, check.output + ": error " + std::to_string(check.error) + ", allowed " +
                        std::to_string(check.allowed) + " " + check.mismatch);
    }
  }
  return 0;
}
