#include "dist/fuse.h"

namespace tessera::internal {

namespace {

bool depends_on_positions(const Problem& whole) {
  return whole.dropout.threshold() != 0 || whole.bias_shape || whole.alibi || whole.mask.has_segments();
}

bool same(Range a, Range b) { return a.begin == b.begin && a.end == b.end; }

// Takes `next` into `part` where they are neighbours in one direction and alike in the other.
bool join(SubProblem& part, const SubProblem& next) {
  const bool dense = part.problem.mask == Mask::none() && next.problem.mask == Mask::none();
  if (!dense || part.batch_begin != next.batch_begin || part.problem.batch != next.problem.batch) {
    return false;
  }
  if (same(part.key_rows, next.key_rows) && part.query_rows.end == next.query_rows.begin) {
    part.query_rows.end = next.query_rows.end;
    part.problem.seq_q += next.problem.seq_q;
    return true;
  }
  if (same(part.query_rows, next.query_rows) && part.key_rows.end == next.key_rows.begin) {
    part.key_rows.end = next.key_rows.end;
    part.problem.seq_k += next.problem.seq_k;
    return true;
  }
  return false;
}

// Query i of the whole sequence sees the keys up to i, and no other band cuts it.
bool plainly_causal(const Problem& whole) {
  const Mask& mask = whole.mask;
  return mask.left() == Mask::kUnlimited && mask.right() == 0 && whole.seq_q == whole.seq_k &&
         whole.key_lengths.empty() && mask.alignment().resolve(whole.seq_q, whole.seq_k) == 0;
}

}  // namespace

std::vector<SubProblem> fused(const Problem& whole, std::vector<SubProblem> parts, bool own_block,
                              std::int64_t own_tokens) {
  if (parts.size() < 2 || depends_on_positions(whole)) {
    return parts;
  }
  if (own_block && plainly_causal(whole)) {
    SubProblem all = parts.front();
    all.query_rows = all.key_rows = {0, own_tokens};
    all.problem.seq_q = all.problem.seq_k = own_tokens;
    all.problem.mask = Mask::causal();
    return {all};
  }
  std::vector<SubProblem> result;
  for (SubProblem& part : parts) {
    bool joined = false;
    for (SubProblem& before : result) {
      joined = joined || join(before, part);
    }
    if (!joined) {
      result.push_back(std::move(part));
    }
  }
  return result;
}

}  // namespace tessera::internal
