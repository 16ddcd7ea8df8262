// Everything about one flash problem that is decided before it runs: tiles, work items and the layout of the workspace.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/product.h"
#include "plan/workspace.h"
#include "tessera/plan.h"

namespace tessera::internal {

// The register tile of one set of kernels, which decides how operands are packed.
struct KernelShape {
  std::int64_t lanes = 4;       // float32 in a vector
  std::int64_t panel = 16;      // columns of a packed panel
  std::int64_t depth_unit = 1;  // elements in a 4-byte unit of an operand: 1 float or 2 bfloat16
  bool transposed_a = true;     // whether A may be given transposed; else dK and dV are summed transposed
  std::int64_t planes = 1;      // parts that an operand is the sum of: 3 where float32 is three times bfloat16

  // Whether operands are made of float32, and the scale is folded into Q; else they are bfloat16 as the problem stores it.
  bool takes_floats() const { return depth_unit == 1 || planes > 1; }
};

// A range of query rows (forward) or key rows (backward) of one (sequence, head); heads are query heads forward and
// key heads backward.
struct FlashItem {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  Range rows;
  std::int64_t chunk = 0;  // backward: which partial of dQ it adds to
};

// A part of dbias and what is summed into it, in this order; see FlashBackward::run_bias.
struct BiasPart {
  Range batches, heads, query_tiles, key_tiles;
};

// A tile of keys to pack.
struct PackItem {
  std::int64_t batch = 0;
  std::int64_t head_kv = 0;
  std::int64_t key_tile = 0;
};

// One sequence: its span and its tile schedule.
struct FlashSequence {
  SequenceSpan span;
  std::int64_t stored_keys = 0;  // rows of K and V that exist, of which span.keys are in use
  std::int64_t padded_keys = 0;
  std::int64_t key_tiles = 0;
  std::size_t first_group = 0;  // index into FlashPlan::groups of its key head 0
  std::size_t schedule = 0;     // index into FlashPlan::schedules of its query head 0
};

// One (sequence, key head): where its packed rows and tiles begin among those of its wave.
struct FlashGroup {
  std::int64_t packed_row = 0;
  std::int64_t packed_tile = 0;
};

// Groups that are packed, used and overwritten together: as few as keep every thread busy, so that packed operands stay
// in cache and the workspace stays small. Indices into FlashPlan::pack_items and ::items.
struct FlashWave {
  Range pack_items, items;
};

// Planes of 4-byte units.
struct OperandSlot {
  WorkspaceSlot<float> slot;
  std::int64_t plane = 0;  // units of one

  template <class Unit>
  OperandOf<Unit> in(std::span<std::byte> workspace) const {
    return {reinterpret_cast<Unit*>(slot.in(workspace)), plane};
  }
};

// Packed operands. K and V are packed once per (sequence, key head) and shared by every query tile and
// every query head of the group.
struct PackedOperand {
  OperandSlot slot;
  std::int64_t units_per_row = 0;  // per packed key row
};

// One thread's scratch. Strides are in 4-byte units; a pad keeps rows off the same cache sets.
struct FlashScratch {
  std::int64_t q_stride = 0;  // of q and, backward, of q as a right-hand operand
  std::int64_t dout_stride = 0;
  std::int64_t score_stride = 0;   // of scores and dp
  std::int64_t weight_stride = 0;  // of weights and ds: bfloat16 pairs along the keys
  std::int64_t sum_stride = 0;     // of transposed dk and dv
  std::int64_t pair_stride = 0;    // of transposed q_pairs and dout_pairs
  OperandSlot q;
  WorkspaceSlot<float> scores;
  OperandSlot weights;                                     // forward
  WorkspaceSlot<float> out;                                // forward
  WorkspaceSlot<float> row_max, row_sum, rescale;          // forward
  OperandSlot dout;                                        // backward
  WorkspaceSlot<float> dp, derivative, dk, dv;             // backward
  OperandSlot q_pairs, dout_pairs, ds, p_pairs, ds_pairs;  // backward, bfloat16 products
  OperandSlot q_pairs_t, dout_pairs_t;                     // transposed, where A may not be
  WorkspaceSlot<float> joined;                             // see Product::joined
  WorkspaceSlot<float> row_a, row_b;                       // bias and ALiBi of one row of a tile, dropout of two
  WorkspaceSlot<float> bias_tile;                          // a tile of dbias
};

struct FlashPlan {
  static constexpr std::int64_t kMaxDim = 512;
  static constexpr std::int64_t kMostTilesPerItem = 4;
  static constexpr std::int64_t kMostTilesPerVisit = 8;

  Problem problem;
  Pass pass = Pass::forward;
  KernelShape shape;
  int threads = 1;

  std::int64_t tile_q = 0;
  std::int64_t tile_k = 0;
  std::int64_t tiles_per_item = 1;   // forward: query tiles that share one pass over the keys
  std::int64_t tiles_per_visit = 1;  // forward: key tiles whose scores make one row of the softmax
  std::int64_t padded_qk = 0;        // dim_qk and dim_v rounded up to whole vectors
  std::int64_t padded_v = 0;
  std::int64_t panels_qk = 0;  // dim_qk and dim_v in panels, rounded up
  std::int64_t panels_v = 0;
  std::int64_t units_qk = 0;  // dim_qk and dim_v in depth units, rounded up
  std::int64_t units_v = 0;
  bool modified = false;      // softcap, score function, bias or ALiBi: scores need a pass of their own
  float q_factor = 1.0F;      // folded into Q as it is loaded
  float score_factor = 1.0F;  // still to be applied to Q K^T; plain scores are then in base 2

  std::vector<FlashSequence> sequences;
  std::vector<TileSchedule> schedules;
  std::int64_t schedules_per_sequence = 1;  // 1, or one for each query head
  std::vector<FlashGroup> groups;           // key heads of the first sequence, of the second, ...
  std::vector<FlashWave> waves;
  std::vector<PackItem> pack_items;
  std::vector<FlashItem> items;
  std::vector<FlashItem> line_items;  // backward: runs of query rows of each query head
  std::int64_t query_rows = 0;        // of all sequences
  std::int64_t packed_rows = 0;       // of the largest wave
  std::int64_t packed_tiles = 0;
  std::int64_t chunks = 1;  // backward: partials of dQ

  // Forward: keys_t [panel][unit][column], values [panel][row pair or row][column]. Backward: keys_t, values_t, keys.
  PackedOperand keys_t, values_t, keys, values;
  WorkspaceSlot<std::uint8_t> special_keys, special_values;  // per key tile: holds a NaN or an infinity
  WorkspaceSlot<float> lse_log2, delta;                      // backward: per query head and row
  WorkspaceSlot<float> dq_partials;
  WorkspaceSlot<std::uint8_t>
      dq_begun;  // at the first row of each query tile: whether the rows of the partial are in use
  FlashScratch layout;
  WorkspaceSlot<std::byte> scratch;
  std::int64_t scratch_bytes = 0;  // of one thread
  std::int64_t workspace_bytes = 0;

  const TileSchedule& schedule_of(const FlashSequence& sequence, std::int64_t head) const {
    return schedules[sequence.schedule + static_cast<std::size_t>(schedules_per_sequence == 1 ? 0 : head)];
  }
  // Units before the packed rows of one (sequence, key head).
  std::int64_t packed_units(const PackedOperand& operand, const FlashSequence& sequence, std::int64_t head_kv) const {
    return group_of(sequence, head_kv).packed_row * operand.units_per_row;
  }
  std::int64_t special_index(const FlashSequence& sequence, std::int64_t head_kv, std::int64_t key_tile) const {
    return group_of(sequence, head_kv).packed_tile + key_tile;
  }
  const FlashGroup& group_of(const FlashSequence& sequence, std::int64_t head_kv) const {
    return groups[sequence.first_group + static_cast<std::size_t>(head_kv)];
  }
  // Index of the first row of one (sequence, query head) in lse_log2 and delta.
  std::int64_t query_line(const FlashSequence& sequence, std::int64_t head) const {
    return sequence.span.query_row * problem.heads_q + head * sequence.span.queries;
  }
  // And in the partial of dQ of one chunk.
  std::int64_t dq_line(std::int64_t chunk, const FlashSequence& sequence, std::int64_t head) const {
    return chunk * problem.total_q() * problem.heads_q + query_line(sequence, head);
  }
};

FlashPlan make_flash_plan(const Problem& problem, Pass pass, const KernelShape& shape, int threads);

}  // namespace tessera::internal
