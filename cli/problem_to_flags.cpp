#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "cli/problem_flags.h"

namespace tessera::cli {

namespace {

std::string lengths_text(const std::vector<std::int64_t>& lengths) {
  return lengths.empty() ? "none" : fmt::format("{}", fmt::join(lengths, ","));
}

std::string documents_text(const Problem& problem, const std::vector<std::int32_t>& ids, bool query_side) {
  std::vector<std::string> sequences;
  auto next = ids.begin();
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const auto end =
        next + (query_side ? problem.sequence(b).queries : stored_keys(problem, static_cast<std::size_t>(b)));
    std::vector<std::int64_t> lengths;
    for (; next != end; ++next) {
      lengths.resize(std::max(lengths.size(), static_cast<std::size_t>(*next) + 1));
      ++lengths[static_cast<std::size_t>(*next)];
    }
    sequences.push_back(lengths_text(lengths));
  }
  return sequences.empty() ? "none" : fmt::format("{}", fmt::join(sequences, "/"));
}

std::vector<std::int64_t> differences(const std::vector<std::int64_t>& sums) {
  std::vector<std::int64_t> lengths(sums.size());
  std::adjacent_difference(sums.begin(), sums.end(), lengths.begin());
  lengths.erase(lengths.begin());
  return lengths;
}

}  // namespace

std::string to_flags(const Problem& problem, const TensorOptions& options) {
  std::string flags = fmt::format("--dtype {}", dtype_name(problem.dtype));
  const auto add = [&flags](bool present, const std::string& text) { flags += present ? " " + text : ""; };
  const auto limit = [](std::int64_t side) { return side == Mask::kUnlimited ? "inf" : std::to_string(side); };
  if (problem.output_dtype) {
    add(true, fmt::format("--output-dtype {}", dtype_name(*problem.output_dtype)));
  }
  add(!problem.ragged(), fmt::format("--batch {} --seq-q {} --seq-k {}", problem.batch, problem.seq_q, problem.seq_k));
  add(true, fmt::format("--heads {} --kv-heads {} --dim {} --dim-v {}", problem.heads_q, problem.heads_kv,
                        problem.dim_qk, problem.dim_v));
  if (problem.ragged()) {
    add(true, fmt::format("--lengths {} --lengths-k {}", lengths_text(differences(problem.cu_seqlens_q)),
                          lengths_text(differences(problem.cu_seqlens_k))));
  }
  add(!problem.key_lengths.empty(), fmt::format("--key-lengths {}", fmt::join(problem.key_lengths, ",")));

  const Mask& mask = problem.mask;
  const Alignment& alignment = mask.alignment();
  add(mask.has_band(), fmt::format("--window {},{}", limit(mask.left()), limit(mask.right())));
  add(alignment.kind == Alignment::Kind::top_left, "--alignment top-left");
  add(alignment.kind == Alignment::Kind::at, fmt::format("--alignment {}", alignment.diagonal));
  if (mask.has_segments()) {
    add(true, fmt::format("--segments {} --segments-k {}", documents_text(problem, mask.segment_ids().query, true),
                          documents_text(problem, mask.segment_ids().key, false)));
  }
  if (mask.has_blocks()) {
    const BlockGrid& grid = mask.block_mask().grid();
    add(true, fmt::format("--block-size {},{} --blocks {}", grid.block_q, grid.block_k, to_drawing(mask.block_mask())));
  }

  add(problem.scale.has_value(), fmt::format("--scale {}", problem.scale.value_or(0)));
  add(problem.softcap != 0, fmt::format("--softcap {}", problem.softcap));
  add(problem.alibi, "--alibi");
  add(problem.sinks, "--sinks");
  if (problem.bias_shape) {
    const std::array<std::int64_t, 4> whole{problem.batch, problem.heads_q, problem.seq_q, problem.seq_k};
    std::string axes;
    for (std::size_t axis = 0; axis < whole.size(); ++axis) {
      if ((*problem.bias_shape)[axis] != 1) {
        axes += kBiasAxes[axis];
      }
    }
    add(true, fmt::format("--bias {} --bias-dtype {}", axes.empty() ? "1" : axes, dtype_name(problem.bias_dtype)));
  }
  flags += function_flags(problem);
  const Dropout& dropout = problem.dropout;
  add(dropout.probability != 0, fmt::format("--dropout {}", dropout.probability));
  add(dropout.seed != 0, fmt::format("--dropout-seed {}", dropout.seed));
  if (dropout.batch_start != 0 || dropout.head_start != 0 || dropout.query_start != 0 || dropout.key_start != 0) {
    add(true, fmt::format("--dropout-start {},{},{},{}", dropout.batch_start, dropout.head_start, dropout.query_start,
                          dropout.key_start));
  }

  add(options.seed != 0, fmt::format("--seed {}", options.seed));
  add(options.strides != StrideKind::packed, "--strides " + strides_text(options));
  add(options.magnitude != 1, fmt::format("--magnitude {}", options.magnitude));
  add(options.alibi_per_batch, "--alibi-per-batch");
  add(options.dlse, "--dlse");
  add(options.bias_holes, "--bias-holes");
  add(options.bias_expanded, "--bias-expanded");
  add(options.specials, "--specials");
  return flags;
}

}  // namespace tessera::cli
