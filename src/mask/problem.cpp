#include "tessera/problem.h"

#include <algorithm>
#include <cmath>

#include "core/fail.h"
#include "core/philox.h"

namespace tessera {

namespace {

std::string list(const std::vector<std::int64_t>& values) {
  constexpr std::size_t kShown = 8;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(values.size(), kShown); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  }
  return text + (values.size() > kShown ? ", ...]" : "]");
}

std::int64_t longest(const std::vector<std::int64_t>& cumulative) {
  std::int64_t length = 0;
  for (std::size_t i = 1; i < cumulative.size(); ++i) {
    if (cumulative[i - 1] >= 0 && cumulative[i] >= 0) {  // others are for validate() to refuse
      length = std::max(length, cumulative[i] - cumulative[i - 1]);
    }
  }
  return length;
}

}  // namespace

int Dropout::threshold() const { return static_cast<int>(std::lround(probability * 256.0)); }

float Problem::softmax_scale() const {
  return scale.value_or(static_cast<float>(1.0 / std::sqrt(static_cast<double>(std::max<std::int64_t>(dim_qk, 1)))));
}

SequenceSpan Problem::sequence(std::int64_t batch_index) const {
  const auto b = static_cast<std::size_t>(batch_index);
  SequenceSpan span{seq_q, seq_k, batch_index * seq_q, batch_index * seq_k};
  if (ragged()) {
    span = {cu_seqlens_q[b + 1] - cu_seqlens_q[b], cu_seqlens_k[b + 1] - cu_seqlens_k[b], cu_seqlens_q[b],
            cu_seqlens_k[b]};
  }
  if (!key_lengths.empty()) {
    span.keys = key_lengths[b];
  }
  return span;
}

bool Problem::sequences_are_alike() const {
  return !ragged() && key_lengths.empty() && !mask.has_segments() &&
         (!mask.has_blocks() || mask.block_mask().batch() == 1);
}

std::int64_t Problem::schedules_per_sequence() const { return mask.has_blocks() ? mask.block_mask().heads() : 1; }

TileSchedule Problem::schedule(std::int64_t batch_index, std::int64_t tile_q, std::int64_t tile_k,
                               std::int64_t head) const {
  if (mask_function) {
    internal::fail_argument("mask_function of a schedule", mask_function->describe(),
                            "problems of lower_mask_function()");
  }
  const SequenceSpan span = sequence(batch_index);
  const std::int64_t pattern = mask.has_blocks() ? mask.block_mask().pattern_of(batch_index, head) : 0;
  return {mask, {span.queries, span.keys, span.query_row, span.key_row, pattern}, tile_q, tile_k};
}

std::string Problem::describe() const {
  std::string text(dtype_name(dtype));
  const auto add = [&text](const std::string& part) { text += " " + part; };
  if (ragged()) {
    add("ragged q" + list(cu_seqlens_q) + " k" + list(cu_seqlens_k));
  } else {
    add("batch " + std::to_string(batch) + " seq " + std::to_string(seq_q) + "x" + std::to_string(seq_k));
  }
  add("heads " + std::to_string(heads_q) + ":" + std::to_string(heads_kv));
  add("dim " + std::to_string(dim_qk) + ":" + std::to_string(dim_v));
  if (out_dtype() != dtype) {
    add("output " + std::string(dtype_name(out_dtype())));
  }
  if (!key_lengths.empty()) {
    add("key_lengths " + list(key_lengths));
  }
  if (lengths_in_tensors) {
    add("lengths in tensors");
  }
  if (paged()) {
    add("pages of " + std::to_string(page_size));
  }
  if (const std::string described = mask.describe(); described != "none") {
    add("mask " + described);
  }
  if (scale) {
    add("scale " + internal::to_text(*scale));
  }
  if (softcap != 0.0F) {
    add("softcap " + internal::to_text(softcap));
  }
  if (alibi) {
    add("alibi");
  }
  if (sinks) {
    add("sinks");
  }
  if (bias_shape) {
    add("bias " + std::string(dtype_name(bias_dtype)) + list({bias_shape->begin(), bias_shape->end()}));
  }
  if (score_function) {
    add("score_function " + score_function->describe());
  }
  if (mask_function) {
    add("mask_function " + mask_function->describe());
  }
  if (const Positions& at = function_positions; !(at == Positions{})) {
    add("function positions from " + list({at.batch_start, at.head_start, at.query_start, at.key_start}) + " by " +
        list({at.query_stride, at.key_stride}));
  }
  if (dropout.probability > 0.0) {
    add("dropout " + internal::to_text(dropout.probability) + " seed " + std::to_string(dropout.seed));
    if (dropout.query_start != 0 || dropout.key_start != 0 || dropout.head_start != 0 || dropout.batch_start != 0) {
      add("from " + list({dropout.batch_start, dropout.head_start, dropout.query_start, dropout.key_start}));
    }
    if (dropout.query_stride != 1 || dropout.key_stride != 1) {
      add("by " + list({dropout.query_stride, dropout.key_stride}));
    }
  }
  return text;
}

void set_ragged(Problem& problem, std::vector<std::int64_t> cu_seqlens_q, std::vector<std::int64_t> cu_seqlens_k) {
  problem.batch = static_cast<std::int64_t>(cu_seqlens_q.size()) - 1;
  problem.seq_q = longest(cu_seqlens_q);
  problem.seq_k = longest(cu_seqlens_k);
  problem.cu_seqlens_q = std::move(cu_seqlens_q);
  problem.cu_seqlens_k = std::move(cu_seqlens_k);
}

bool dropout_keeps(const Dropout& dropout, std::int64_t batch, std::int64_t head, std::int64_t query,
                   std::int64_t key) {
  const std::int64_t position = key * dropout.key_stride + dropout.key_start;
  const auto block = internal::dropout_block(dropout.seed, batch + dropout.batch_start, head + dropout.head_start,
                                             query * dropout.query_stride + dropout.query_start, position >> 6,
                                             internal::dropout_lane(position));
  return static_cast<int>(internal::dropout_byte(block, position)) >= dropout.threshold();
}

}  // namespace tessera
