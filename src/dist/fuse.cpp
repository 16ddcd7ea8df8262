#include "dist/fuse.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "dist/block_part.h"

namespace tessera::internal {

namespace {

bool depends_on_positions(const Problem& whole) {
  return whole.dropout.threshold() != 0 || whole.bias_shape || whole.alibi || whole.score_function ||
         whole.mask.has_segments();
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

std::vector<SubProblem> joined(std::vector<SubProblem> parts) {
  std::vector<SubProblem> result;
  for (SubProblem& part : parts) {
    const bool taken =
        std::any_of(result.begin(), result.end(), [&](SubProblem& before) { return join(before, part); });
    if (!taken) {
      result.push_back(std::move(part));
    }
  }
  return result;
}

// Query i of the whole sequence sees the keys up to i, and no other band cuts it.
bool plainly_causal(const Problem& whole) {
  const Mask& mask = whole.mask;
  return mask.left() == Mask::kUnlimited && mask.right() == 0 && whole.seq_q == whole.seq_k &&
         whole.key_lengths.empty() && mask.alignment().resolve(whole.seq_q, whole.seq_k) == 0;
}

// All of the queries against all of the keys.
SubProblem all_tokens(const RingGroup& group, int query_rank, int key_rank, const SubProblem& like) {
  SubProblem all = like;
  all.query_rows = {0, group.query_layout.tokens(query_rank)};
  all.key_rows = {0, group.key_layout.tokens(key_rank)};
  all.problem.seq_q = all.query_rows.size();
  all.problem.seq_k = all.key_rows.size();
  return all;
}

// One problem with the blocks of all pieces, where the band alone shows each pair of pieces wholly or not at all, or is the plain
// causal one of a rank's own block.
std::optional<SubProblem> with_blocks_of_all(const RingGroup& group, int query_rank, int key_rank,
                                             const SubProblem& like) {
  if (!group.whole.key_lengths.empty()) {
    return std::nullopt;
  }
  Problem without_blocks = group.whole;
  without_blocks.mask = group.whole.mask.has_band() ? Mask::window(group.whole.mask.left(), group.whole.mask.right(),
                                                                   group.whole.mask.alignment())
                                                    : Mask::none();
  const std::vector<Stripe> queries = group.query_layout.pieces(query_rank);
  const std::vector<Stripe> keys = group.key_layout.pieces(key_rank);
  const bool causal = query_rank == key_rank && plainly_causal(without_blocks);
  std::vector<std::pair<Stripe, Stripe>> seen;
  for (const SubProblem& part :
       sub_problems(without_blocks, group.query_layout, query_rank, group.key_layout, key_rank)) {
    if (!causal && !(part.problem.mask == Mask::none())) {
      return std::nullopt;
    }
    seen.emplace_back(part.query_positions, part.key_positions);
  }
  const auto admits = [&](std::size_t query_piece, std::size_t key_piece) {
    return causal ||
           std::find(seen.begin(), seen.end(), std::pair(queries[query_piece], keys[key_piece])) != seen.end();
  };
  SubProblem all = all_tokens(group, query_rank, key_rank, like);
  const Range batch{like.batch_begin, like.batch_begin + like.problem.batch};
  all.problem.mask = with_blocks(causal ? Mask::causal() : Mask::none(),
                                 part_of_blocks(group.whole.mask.block_mask(), batch, queries, keys, admits));
  return all;
}

}  // namespace

std::vector<SubProblem> fused_parts(const RingGroup& group, int rank, int owner) {
  std::vector<SubProblem> parts = group.parts(rank, owner);
  if (parts.size() < 2 || depends_on_positions(group.whole)) {
    return parts;
  }
  const int query_rank = group.query_rank(rank, owner);
  const int key_rank = group.key_rank(rank, owner);
  if (group.whole.mask.has_blocks()) {
    const auto all = with_blocks_of_all(group, query_rank, key_rank, parts.front());
    return all ? std::vector{*all} : parts;
  }
  if (rank == owner && plainly_causal(group.whole)) {
    SubProblem all = all_tokens(group, query_rank, key_rank, parts.front());
    all.problem.mask = Mask::causal();
    return {all};
  }
  for (std::size_t before = parts.size() + 1; parts.size() < before;) {  // rows of pieces, then all of them
    before = parts.size();
    parts = joined(std::move(parts));
  }
  return parts;
}

}  // namespace tessera::internal
