#include "cli/sample_error.h"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "cli/compare.h"
#include "core/half.h"

namespace tessera::cli {

namespace {

// (query, key) pairs times head dims that the oracle does in about a second.
constexpr double kMostOracleWork = 1 << 28;
constexpr std::int64_t kBlockRows = 16;

// Elements begin .. begin + count of one axis; an extent of 1 that is broadcast stays.
ConstTensorView slice(ConstTensorView view, int axis, std::int64_t begin, std::int64_t count) {
  const auto a = static_cast<std::size_t>(axis);
  view.data = static_cast<const std::byte*>(view.data) + begin * view.strides[a] * dtype_bytes(view.dtype);
  view.shape[a] = count;
  return view;
}

HostTensor widened_copy(const ConstTensorView& view) {
  HostTensor copy(DType::float64, std::span(view.shape).first(static_cast<std::size_t>(view.rank)));
  std::array<std::int64_t, kMaxRank> index{};
  copy.fill([&] {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < index.size(); ++axis) {
      offset += index[axis] * view.strides[axis];
    }
    for (auto axis = static_cast<std::size_t>(view.rank); axis-- > 0;) {
      if (++index[axis] < view.shape[axis]) {
        break;
      }
      index[axis] = 0;
    }
    return internal::load_element(view.data, view.dtype, offset);
  });
  return copy;
}

// A block of rows of one sequence, with the query heads of one key head, as a problem of its own.
class Block {
 public:
  Block(const ProblemTensors& tensors, std::int64_t first_row, std::int64_t rows)
      : tensors_(tensors), whole_(tensors.problem()), first_row_(first_row), rows_(rows) {
    batch_ = whole_.batch - 1;
    head_kv_ = whole_.heads_kv - 1;
    span_ = whole_.sequence(batch_);
  }

  // The oracle's outputs for the block.
  const ProblemTensors& solve(Pass pass) {
    solved_.emplace(block_problem(), TensorOptions{});
    solved_->q = widened_copy(query_rows(tensors_.q.const_view()));
    solved_->k = widened_copy(key_rows(tensors_.k.const_view()));
    solved_->v = widened_copy(key_rows(tensors_.v.const_view()));
    solved_->dout = widened_copy(query_rows(tensors_.dout.const_view()));
    const ScoreTensors score = tensors_.forward().score;
    if (whole_.bias_shape) {
      solved_->bias = widened_copy(bias_block(score.bias));
    }
    if (whole_.alibi) {
      const bool per_batch = score.alibi_slopes.rank == 2;
      const ConstTensorView row = per_batch ? slice(score.alibi_slopes, 0, batch_, 1) : score.alibi_slopes;
      solved_->alibi_slopes = widened_copy(heads_of(row, per_batch ? 1 : 0));
    }
    if (whole_.sinks) {
      solved_->sinks = widened_copy(heads_of(score.sinks, 0));
    }
    PlanOptions options;
    options.impl = "reference";
    Plan::make(solved_->problem(), Pass::forward, options).run(solved_->forward());
    if (pass == Pass::backward) {
      Plan::make(solved_->problem(), Pass::backward, options).run(solved_->backward());
    }
    return *solved_;
  }

  // The block's part of [batch, seq, heads, dim] or ragged [total, heads, dim] tensors.
  ConstTensorView query_rows(const ConstTensorView& view) const {
    return heads_of(rows_of(view, span_.query_row + first_row_, first_row_, rows_), view.rank - 2);
  }
  ConstTensorView key_rows(const ConstTensorView& view) const {
    return slice(rows_of(view, span_.key_row, 0, span_.keys), view.rank - 2, head_kv_, 1);
  }
  // And of [batch, heads, seq] or ragged [heads, total].
  ConstTensorView lse_rows(const ConstTensorView& view) const {
    if (view.rank == 2) {
      return slice(heads_of(view, 0), 1, span_.query_row + first_row_, rows_);
    }
    return slice(heads_of(slice(view, 0, batch_, 1), 1), 2, first_row_, rows_);
  }

 private:
  std::int64_t first_head() const { return head_kv_ * whole_.group_size(); }

  ConstTensorView heads_of(const ConstTensorView& view, int axis) const {
    return slice(view, axis, first_head(), whole_.group_size());
  }
  // As [1, rows, heads, dim]; a ragged tensor gets its batch axis here.
  ConstTensorView rows_of(const ConstTensorView& view, std::int64_t token, std::int64_t row, std::int64_t rows) const {
    return view.rank == 3 ? slice(view, 0, token, rows) : slice(slice(view, 0, batch_, 1), 1, row, rows);
  }
  ConstTensorView bias_block(ConstTensorView bias) const {
    const std::array<std::pair<std::int64_t, std::int64_t>, 4> parts{
        {{batch_, 1}, {first_head(), whole_.group_size()}, {first_row_, rows_}, {0, span_.keys}}};
    for (int axis = 0; axis < 4; ++axis) {
      const auto [begin, count] = parts[static_cast<std::size_t>(axis)];
      if (bias.shape[static_cast<std::size_t>(axis)] != 1) {
        bias = slice(bias, axis, begin, count);
      }
    }
    return bias;
  }

  Problem block_problem() const {
    Problem problem = widened(whole_);
    problem.batch = 1;
    problem.heads_q = whole_.group_size();
    problem.heads_kv = 1;
    problem.key_lengths.clear();
    if (whole_.ragged()) {
      set_ragged(problem, {0, rows_}, {0, span_.keys});
    } else {
      problem.seq_q = rows_;
      problem.seq_k = span_.keys;
    }
    problem.dropout.batch_start += batch_;
    problem.dropout.head_start += first_head();
    problem.dropout.query_start += first_row_;
    Positions& positions = problem.function_positions;
    positions.batch_start += static_cast<int>(batch_);
    positions.head_start += static_cast<int>(first_head());
    positions.query_start += static_cast<int>(first_row_) * positions.query_stride;
    const Mask& mask = whole_.mask;
    Mask block = Mask::window(mask.left(), mask.right());
    if (mask.has_segments()) {
      const auto part = [](const std::vector<std::int32_t>& ids, std::int64_t begin, std::int64_t count) {
        return std::vector(ids.begin() + begin, ids.begin() + begin + count);
      };
      const Segments& ids = mask.segment_ids();
      block = block & Mask::segments({part(ids.query, span_.query_row + first_row_, rows_),
                                      part(ids.key, span_.key_row, span_.keys)});
    }
    if (mask.has_blocks()) {
      block = block & Mask::blocks(blocks_of_rows(mask.block_mask()));
    }
    problem.mask =
        block.with_alignment(Alignment::at(mask.alignment().resolve(span_.queries, span_.keys) + first_row_));
    if (whole_.bias_shape) {
      const ConstTensorView shape = bias_block(tensors_.forward().score.bias);
      problem.bias_shape = shape.shape;
    }
    return problem;
  }

  // Rows that begin anywhere in a block, pair by pair.
  BlockMask blocks_of_rows(const BlockMask& whole) const {
    std::vector<BlockMask> heads;
    for (std::int64_t head = first_head(); head < first_head() + whole_.group_size(); ++head) {
      const std::int64_t pattern = whole.pattern_of(batch_, head);
      std::vector<std::uint8_t> attends;
      for (std::int64_t row = first_row_; row < first_row_ + rows_; ++row) {
        for (std::int64_t key = 0; key < span_.keys; ++key) {
          attends.push_back(whole.attends(pattern, row, key) ? 1 : 0);
        }
      }
      heads.push_back(BlockMask::from_dense({rows_, span_.keys, kBlockRows, kBlockRows}, attends));
    }
    return BlockMask::over_heads(heads);
  }

  const ProblemTensors& tensors_;
  const Problem& whole_;
  std::int64_t first_row_;
  std::int64_t rows_;
  std::int64_t batch_ = 0;
  std::int64_t head_kv_ = 0;
  SequenceSpan span_;
  std::optional<ProblemTensors> solved_;
};

// Values of all blocks, gathered for one norm.
struct Gathered {
  std::string name;
  DType dtype;
  std::vector<double> found, expected;
  void add(const ConstTensorView& view, const HostTensor& oracle) {
    const std::vector<double> a = widened_copy(view).values();
    const std::vector<double> b = oracle.values();
    found.insert(found.end(), a.begin(), a.end());
    expected.insert(expected.end(), b.begin(), b.end());
  }
};

std::vector<std::int64_t> block_starts(std::int64_t rows, std::int64_t block) {
  if (block == rows) {
    return {0};
  }
  return {0, (rows - block) / 3, 2 * (rows - block) / 3, rows - block};
}

}  // namespace

SampledError sampled_error(const ProblemTensors& tensors, Pass pass) {
  const Problem& problem = tensors.problem();
  SampledError result;
  if (problem.batch == 0) {
    return result;
  }
  const SequenceSpan span = problem.sequence(problem.batch - 1);
  const double work_whole = static_cast<double>(span.queries) * static_cast<double>(span.keys) *
                            static_cast<double>(problem.group_size() * (problem.dim_qk + problem.dim_v));
  result.whole = work_whole <= kMostOracleWork || span.queries <= 4 * kBlockRows;
  const std::int64_t block_rows = result.whole ? span.queries : kBlockRows;

  std::vector<Gathered> outputs{{"O", tensors.out.view().dtype, {}, {}}, {"LSE", tensors.lse.view().dtype, {}, {}}};
  if (pass == Pass::backward) {
    outputs = {{"dQ", tensors.dq.view().dtype, {}, {}}};
    if (result.whole) {
      outputs.push_back({"dK", tensors.dk.view().dtype, {}, {}});
      outputs.push_back({"dV", tensors.dv.view().dtype, {}, {}});
    }
  }
  for (const std::int64_t first : block_starts(span.queries, block_rows)) {
    Block block(tensors, first, block_rows);
    const ProblemTensors& oracle = block.solve(pass);
    if (pass == Pass::forward) {
      outputs[0].add(block.query_rows(tensors.out.const_view()), oracle.out);
      outputs[1].add(block.lse_rows(tensors.lse.const_view()), oracle.lse);
    } else {
      outputs[0].add(block.query_rows(tensors.dq.const_view()), oracle.dq);
    }
    if (pass == Pass::backward && result.whole) {
      outputs[1].add(block.key_rows(tensors.dk.const_view()), oracle.dk);
      outputs[2].add(block.key_rows(tensors.dv.const_view()), oracle.dv);
    }
    result.rows += block_rows;
  }
  for (const Gathered& output : outputs) {
    const Difference difference = compare(output.found, output.expected, output.dtype);
    const double error = difference.mismatch ? std::numeric_limits<double>::infinity() : difference.relative();
    if (result.output.empty() || error > result.error) {
      result.error = error;
      result.output = output.name;
    }
  }
  return result;
}

std::string error_text(const std::optional<SampledError>& sample) {
  return sample ? fmt::format("{:.1e}{}", sample->error, sample->whole ? "" : "*") : "-";
}

}  // namespace tessera::cli
