#include "cpu/flash_plan.h"

#include <algorithm>
#include <numbers>

#include "plan/score_function.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kStridePad = 16;
// Backward: as many partials of dQ as give this many items, so that the number depends on the problem alone.
constexpr std::int64_t kWantedBackwardItems = 16;
constexpr std::int64_t kMostChunks = 8;
constexpr std::int64_t kFewestKeysInChunk = 512;

// Packed keys come in whole panels, and in pairs.
std::int64_t granule(const FlashPlan& plan) { return std::max<std::int64_t>(plan.shape.panel, 2); }

// The largest multiple of `unit` up to `most` that divides `block`; `unit` when there is none.
std::int64_t largest_divisor(std::int64_t block, std::int64_t unit, std::int64_t most) {
  std::int64_t size = std::min(most, block) / unit * unit;
  while (size > unit && block % size != 0) {
    size -= unit;
  }
  return std::max(size, unit);
}

struct TileSizes {
  std::int64_t q;
  std::int64_t k;
};

// Up to head dim 128. Forward: the scores of a tile live in L2 beside its K and V; wide tiles pay the upkeep of a row
// (maximum, rescale) less often. Backward: two score tiles, dK and dV of a tile as well, so it is narrower; matrix tiles,
// for which Q and dO are laid out anew for every key tile, gain by wide ones. Measured in NOTES.md.
TileSizes widest_tiles(const FlashPlan& plan, std::int64_t dim) {
  const bool matrix_tiles = !plan.shape.transposed_a;
  if (plan.pass == Pass::forward) {
    return {matrix_tiles ? 96 : 48, 512};
  }
  if (matrix_tiles && plan.shape.planes > 1) {
    return {64, 384};
  }
  if (matrix_tiles) {
    return {96, dim <= 64 ? 512 : 256};
  }
  return {dim <= 128 ? 96 : 48, 256};
}

// Tiles of a block mask divide its blocks, so that no tile is partial for the pattern's sake. Forward, as many of them as
// fill the widest row of scores are visited together.
void choose_tiles(FlashPlan& plan) {
  const Problem& problem = plan.problem;
  const std::int64_t dim = std::max(problem.dim_qk, problem.dim_v);
  const TileSizes widest = widest_tiles(plan, dim);
  const std::int64_t wanted_k = dim <= 128 ? widest.k : dim <= 256 ? widest.k / 2 : widest.k / 4;
  plan.tile_k = round_up(std::clamp<std::int64_t>(problem.seq_k, 1, wanted_k), granule(plan));
  plan.tile_q = round_up(std::clamp<std::int64_t>(problem.seq_q, 1, widest.q), 2);
  if (problem.mask.has_blocks()) {
    const BlockGrid& grid = problem.mask.block_mask().grid();
    const std::int64_t most_q = round_up(widest.q + 16, 32);  // 64 for 48: half a block of 128 is near enough
    plan.tile_q = largest_divisor(grid.block_q, 2, std::min(most_q, round_up(problem.seq_q, 2)));
    plan.tile_k = largest_divisor(grid.block_k, granule(plan), plan.tile_k);
    plan.tiles_per_visit = plan.pass == Pass::forward
                               ? std::clamp<std::int64_t>(wanted_k / plan.tile_k, 1, FlashPlan::kMostTilesPerVisit)
                               : 1;
  }
}

void add_sequences(FlashPlan& plan) {
  const Problem& problem = plan.problem;
  plan.schedules_per_sequence = problem.schedules_per_sequence();
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    FlashSequence sequence;
    sequence.span = problem.sequence(b);
    const auto index = static_cast<std::size_t>(b);
    sequence.stored_keys =
        problem.ragged() ? problem.cu_seqlens_k[index + 1] - problem.cu_seqlens_k[index] : problem.seq_k;
    sequence.padded_keys = round_up(sequence.span.keys, granule(plan));
    sequence.key_tiles = ceil_div(sequence.span.keys, plan.tile_k);
    sequence.first_group = static_cast<std::size_t>(b * problem.heads_kv);
    plan.query_rows += sequence.span.queries;
    const bool same_as_before = !plan.sequences.empty() && !problem.mask.has_segments() &&
                                (!problem.mask.has_blocks() || problem.mask.block_mask().batch() == 1) &&
                                plan.sequences.back().span.queries == sequence.span.queries &&
                                plan.sequences.back().span.keys == sequence.span.keys;
    sequence.schedule = same_as_before ? plan.sequences.back().schedule : plan.schedules.size();
    for (std::int64_t head = 0; head < plan.schedules_per_sequence && !same_as_before; ++head) {
      plan.schedules.push_back(problem.schedule(b, plan.tile_q, plan.tile_k, head));
    }
    plan.sequences.push_back(sequence);
  }
}

// Longest first within a key head, so that threads finish together while they share its packed K and V in cache.
void append_longest_first(std::vector<FlashItem>& items, std::vector<std::pair<std::int64_t, FlashItem>>& group) {
  std::stable_sort(group.begin(), group.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [work, item] : group) {
    items.push_back(item);
  }
  group.clear();
}

std::int64_t visited(const TileSchedule& schedule, Range query_tiles) {
  std::int64_t tiles = 0;
  for (std::int64_t tile = query_tiles.begin; tile < query_tiles.end; ++tile) {
    tiles += schedule.row_size(tile);
  }
  return tiles;
}

void add_forward_items(FlashPlan& plan) {
  const Problem& problem = plan.problem;
  const std::int64_t all_tiles = problem.batch * problem.heads_q * ceil_div(problem.seq_q, plan.tile_q);
  if (!problem.mask.has_blocks()) {  // whose query tiles seldom visit the same keys
    plan.tiles_per_item = std::clamp<std::int64_t>(all_tiles / (8 * plan.threads), 1, FlashPlan::kMostTilesPerItem);
  }
  const std::int64_t group_size = problem.group_size();
  std::vector<std::pair<std::int64_t, FlashItem>> group;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(b)];
    const std::int64_t query_tiles = ceil_div(sequence.span.queries, plan.tile_q);
    for (std::int64_t head_kv = 0; head_kv < problem.heads_kv; ++head_kv) {
      for (std::int64_t tile = 0; tile < query_tiles; tile += plan.tiles_per_item) {
        const std::int64_t last = std::min(tile + plan.tiles_per_item, query_tiles);
        const Range rows{tile * plan.tile_q, std::min(last * plan.tile_q, sequence.span.queries)};
        for (std::int64_t member = 0; member < group_size; ++member) {
          const std::int64_t head = head_kv * group_size + member;
          group.push_back({visited(plan.schedule_of(sequence, head), {tile, last}), {b, head, rows, 0}});
        }
      }
      append_longest_first(plan.items, group);
    }
  }
}

void add_backward_items(FlashPlan& plan) {
  const Problem& problem = plan.problem;
  const std::int64_t heads = std::max<std::int64_t>(problem.batch * problem.heads_kv, 1);
  const std::int64_t group_size = problem.group_size();
  const std::int64_t wanted = ceil_div(kWantedBackwardItems, heads);
  plan.chunks = std::clamp<std::int64_t>(std::min(wanted, problem.seq_k / kFewestKeysInChunk), 1, kMostChunks);
  std::vector<std::pair<std::int64_t, FlashItem>> group;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(b)];
    const std::int64_t tiles_in_chunk = std::max<std::int64_t>(ceil_div(sequence.key_tiles, plan.chunks), 1);
    for (std::int64_t head_kv = 0; head_kv < problem.heads_kv; ++head_kv) {
      for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        const std::int64_t first = std::min(chunk * tiles_in_chunk, sequence.key_tiles);
        const std::int64_t last = std::min(first + tiles_in_chunk, sequence.key_tiles);
        std::int64_t work = 0;
        for (std::int64_t head = head_kv * group_size; head < (head_kv + 1) * group_size; ++head) {
          for (std::int64_t tile = first; tile < last; ++tile) {
            work += plan.schedule_of(sequence, head).column_size(tile);
          }
        }
        group.push_back({work, {b, head_kv, {first * plan.tile_k, last * plan.tile_k}, chunk}});
      }
      append_longest_first(plan.items, group);
    }
  }
}

void add_line_items(FlashPlan& plan) {
  constexpr std::int64_t kRows = 256;
  for (std::int64_t b = 0; b < plan.problem.batch; ++b) {
    const std::int64_t queries = plan.sequences[static_cast<std::size_t>(b)].span.queries;
    for (std::int64_t head = 0; head < plan.problem.heads_q; ++head) {
      for (std::int64_t row = 0; row < queries; row += kRows) {
        plan.line_items.push_back({b, head, {row, std::min(row + kRows, queries)}, 0});
      }
    }
  }
}

void add_pack_items(FlashPlan& plan) {
  for (std::int64_t b = 0; b < plan.problem.batch; ++b) {
    const std::int64_t tiles = plan.sequences[static_cast<std::size_t>(b)].key_tiles;
    for (std::int64_t head_kv = 0; head_kv < plan.problem.heads_kv; ++head_kv) {
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        plan.pack_items.push_back({b, head_kv, tile});
      }
    }
  }
}

// Items of one group, counted by the caller's order: both lists go through the groups in order.
template <class Item, class Head>
std::int64_t end_of_group(const std::vector<Item>& items, std::int64_t begin, std::int64_t batch,
                          const Head& in_group) {
  auto end = static_cast<std::size_t>(begin);
  while (end < items.size() && items[end].batch == batch && in_group(items[end])) {
    ++end;
  }
  return static_cast<std::int64_t>(end);
}

void add_waves(FlashPlan& plan) {
  const Problem& problem = plan.problem;
  const bool forward = plan.pass == Pass::forward;
  // The pass over the scores for dbias visits the groups in its own order: it needs all of them at once.
  const bool all_at_once = !forward && problem.bias_shape.has_value();
  const std::int64_t items_per_wave = plan.threads == 1 ? 1 : 8 * plan.threads;
  const std::int64_t heads_of_item = forward ? problem.group_size() : 1;
  FlashWave wave;
  FlashGroup place;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const FlashSequence& sequence = plan.sequences[static_cast<std::size_t>(b)];
    for (std::int64_t head_kv = 0; head_kv < problem.heads_kv; ++head_kv) {
      if (!all_at_once && wave.items.size() >= items_per_wave) {
        plan.waves.push_back(wave);
        wave = {{wave.pack_items.end, wave.pack_items.end}, {wave.items.end, wave.items.end}};
        place = {};
      }
      plan.groups.push_back(place);
      place.packed_row += sequence.padded_keys;
      place.packed_tile += sequence.key_tiles;
      plan.packed_rows = std::max(plan.packed_rows, place.packed_row);
      plan.packed_tiles = std::max(plan.packed_tiles, place.packed_tile);
      wave.pack_items.end = end_of_group(plan.pack_items, wave.pack_items.end, b,
                                         [&](const PackItem& item) { return item.head_kv == head_kv; });
      wave.items.end = end_of_group(plan.items, wave.items.end, b,
                                    [&](const FlashItem& item) { return item.head / heads_of_item == head_kv; });
    }
  }
  plan.waves.push_back(wave);
}

// One plane is rounded up to whole cache lines.
OperandSlot add_planes(const FlashPlan& plan, WorkspaceLayout& layout, std::int64_t units) {
  const std::int64_t plane = round_up(units, kStridePad);
  return {layout.add<float>(checked_mul(plane, plan.shape.planes, "planes of operands")), plane};
}

// Room for A and one panel of B of every product.
WorkspaceSlot<float> add_joined(const FlashPlan& plan, WorkspaceLayout& layout) {
  const std::int64_t dim = std::max(plan.padded_qk, plan.padded_v);
  const std::int64_t depth = round_up(std::max({dim, plan.tile_k, plan.tile_q}), 2);
  const std::int64_t rows = std::max(plan.tile_q, plan.pass == Pass::backward ? dim : 0);
  return layout.add<float>(plan.shape.planes > 1 ? (rows + plan.shape.panel) * depth : 0);
}

void add_operands(FlashPlan& plan, WorkspaceLayout& layout) {
  const std::int64_t rows = plan.packed_rows;
  const std::int64_t unit = plan.shape.depth_unit;
  const auto add = [&](PackedOperand& operand, std::int64_t units_per_row) {
    operand.units_per_row = units_per_row;
    operand.slot = add_planes(plan, layout, checked_mul(rows, units_per_row, "packed operands"));
  };
  const std::int64_t panel = plan.shape.panel;
  add(plan.keys_t, plan.units_qk);
  if (plan.pass == Pass::forward) {
    add(plan.values, plan.panels_v * panel / unit);
  } else {
    add(plan.values_t, plan.units_v);
    add(plan.keys, plan.panels_qk * panel / unit);
  }
  plan.special_keys = layout.add<std::uint8_t>(plan.packed_tiles);
  plan.special_values = layout.add<std::uint8_t>(plan.packed_tiles);
}

void add_scratch_of_modifiers(const FlashPlan& plan, FlashScratch& s, WorkspaceLayout& layout) {
  const Problem& problem = plan.problem;
  if (problem.bias_shape) {
    s.row_a = layout.add<float>(plan.tile_k);
  }
  if (problem.dropout.threshold() > 0) {
    const bool two_rows = plan.pass == Pass::backward && plan.shape.depth_unit == 2;
    s.row_b = layout.add<float>((two_rows ? 2 : 1) * plan.tile_k);
  }
}

void add_forward_scratch(FlashPlan& plan) {
  FlashScratch& s = plan.layout;
  WorkspaceLayout layout;
  const std::int64_t rows = plan.tile_q * plan.tiles_per_item;
  s.q_stride = round_up(plan.units_qk, kStridePad) + kStridePad;
  const std::int64_t columns = plan.tile_k * plan.tiles_per_visit;
  s.score_stride = columns + kStridePad;
  s.q = add_planes(plan, layout, rows * s.q_stride);
  s.scores = layout.add<float>(plan.tile_q * s.score_stride);
  if (plan.shape.depth_unit == 2) {
    s.weight_stride = columns / 2 + kStridePad;
    s.weights = add_planes(plan, layout, plan.tile_q * s.weight_stride);
  }
  s.out = layout.add<float>(rows * plan.padded_v);
  s.row_max = layout.add<float>(rows);
  s.row_sum = layout.add<float>(rows);
  s.rescale = layout.add<float>(plan.tile_q);
  s.joined = add_joined(plan, layout);
  add_scratch_of_modifiers(plan, s, layout);
  plan.scratch_bytes = layout.bytes();
}

void add_backward_scratch(FlashPlan& plan) {
  FlashScratch& s = plan.layout;
  WorkspaceLayout layout;
  const std::int64_t rows = plan.tile_q;
  s.q_stride = round_up(std::max(plan.units_qk, plan.padded_qk / plan.shape.depth_unit), kStridePad) + kStridePad;
  s.dout_stride = round_up(std::max(plan.units_v, plan.padded_v / plan.shape.depth_unit), kStridePad) + kStridePad;
  s.score_stride = plan.tile_k + kStridePad;
  s.q = add_planes(plan, layout, rows * s.q_stride);
  s.dout = add_planes(plan, layout, rows * s.dout_stride);
  s.scores = layout.add<float>(rows * s.score_stride);
  s.dp = layout.add<float>(rows * s.score_stride);
  if (bends_scores(plan.problem)) {
    s.derivative = layout.add<float>(rows * s.score_stride);
  }
  if (plan.shape.depth_unit == 2) {
    s.weight_stride = plan.tile_k / 2 + kStridePad;
    s.q_pairs = add_planes(plan, layout, round_up(rows / 2, 8) * plan.padded_qk);
    s.dout_pairs = add_planes(plan, layout, round_up(rows / 2, 8) * plan.padded_v);
    s.p_pairs = add_planes(plan, layout, rows / 2 * s.score_stride);
    s.ds_pairs = add_planes(plan, layout, rows / 2 * s.score_stride);
    s.ds = add_planes(plan, layout, rows * s.weight_stride);
  }
  s.sum_stride = plan.tile_k + kStridePad;
  const std::int64_t keys = plan.shape.transposed_a ? plan.tile_k : s.sum_stride;
  s.dk = layout.add<float>(keys * plan.padded_qk);
  s.dv = layout.add<float>(keys * plan.padded_v);
  if (!plan.shape.transposed_a) {
    s.pair_stride = round_up(rows / 2, kStridePad) + kStridePad;
    s.q_pairs_t = add_planes(plan, layout, plan.padded_qk * s.pair_stride);
    s.dout_pairs_t = add_planes(plan, layout, plan.padded_v * s.pair_stride);
  }
  s.joined = add_joined(plan, layout);
  add_scratch_of_modifiers(plan, s, layout);
  if (plan.problem.bias_shape) {
    s.bias_tile = layout.add<float>(rows * plan.tile_k);
  }
  plan.scratch_bytes = layout.bytes();
}

}  // namespace

FlashPlan make_flash_plan(const Problem& problem, Pass pass, const KernelShape& shape, int threads) {
  FlashPlan plan;
  plan.problem = problem;
  plan.pass = pass;
  plan.shape = shape;
  plan.threads = threads;
  const auto units = [&](std::int64_t dim) { return ceil_div(dim, shape.depth_unit); };
  plan.units_qk = units(problem.dim_qk);
  plan.units_v = units(problem.dim_v);
  plan.padded_qk = round_up(problem.dim_qk, shape.lanes);
  plan.padded_v = round_up(problem.dim_v, shape.lanes);
  plan.panels_qk = ceil_div(problem.dim_qk, shape.panel);
  plan.panels_v = ceil_div(problem.dim_v, shape.panel);
  plan.modified = bends_scores(problem) || problem.bias_shape.has_value() || problem.alibi;
  const float factor = problem.softmax_scale() * (plan.modified ? 1.0F : std::numbers::log2e_v<float>);
  (shape.takes_floats() ? plan.q_factor : plan.score_factor) = factor;
  choose_tiles(plan);
  add_sequences(plan);
  add_pack_items(plan);
  pass == Pass::forward ? add_forward_items(plan) : add_backward_items(plan);
  add_waves(plan);
  WorkspaceLayout layout;
  add_operands(plan, layout);
  if (pass == Pass::forward) {
    add_forward_scratch(plan);
  } else {
    add_line_items(plan);
    const std::int64_t lines = problem.total_q() * problem.heads_q;
    plan.lse_log2 = layout.add<float>(lines);
    plan.delta = layout.add<float>(lines);
    plan.dq_partials = layout.add<float>(
        checked_mul(checked_mul(lines, plan.padded_qk, "partials of dQ"), plan.chunks, "partials of dQ"));
    plan.dq_begun = layout.add<std::uint8_t>(lines * plan.chunks);
    add_backward_scratch(plan);
  }
  plan.scratch = layout.add<std::byte>(plan.scratch_bytes * threads);
  plan.workspace_bytes = layout.bytes();
  return plan;
}

}  // namespace tessera::internal
