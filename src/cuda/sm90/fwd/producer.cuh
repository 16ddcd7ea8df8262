// The producer warpgroup of the forward kernel: a thread that hands out tiles and loads queries, and one that loads keys
// and values.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/grid.cuh"
#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/tile/listed.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm90 {

// Whether a kernel with these parameters, which hands out tiles of queries as the forward one does, asks for ForwardTile::first_line.
template <class Params>
inline constexpr bool kHasRowsOfStatistics = false;

// The key at the distance 0 of a query, or one before the first or behind the last key.
template <std::uint32_t kFeatures>
TESSERA_DEVICE int diagonal_key(const ScoreParams& params, const ForwardTile& work, int query) {
  if constexpr (Features<kFeatures>::kAlibi) {
    return query + params.diagonal + (params.bottom_right != 0 ? work.keys - work.queries : 0);
  }
  return Features<kFeatures>::Place(params.function, 0, 0).key_at(query);
}

// Tile `index` of the order in which tiles are handed out.
template <ForwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures, class Params>
TESSERA_DEVICE void decode_tile(const Params& params, int index, ForwardTile& s_tile) {
  const Batch& batch = params.batch;
  int tile_of_head;
  int line;  // (batch, head) pair, or head alone where the tiles of a head run over all sequences
  if (params.order.section_heads > 0) {
    const int lines = batch.sequences == nullptr ? batch.count * batch.heads_q : batch.heads_q;
    const int section = index / (params.order.section_heads * params.order.tiles_of_head);
    const int rest = index - section * params.order.section_heads * params.order.tiles_of_head;
    const int width = min(params.order.section_heads, lines - section * params.order.section_heads);
    tile_of_head = params.order.tiles_of_head - 1 - rest / width;
    line = section * params.order.section_heads + rest % width;
  } else {
    line = index / params.order.tiles_of_head;
    tile_of_head = index - line * params.order.tiles_of_head;
  }
  int owner;
  int head;
  if (batch.sequences == nullptr) {
    owner = line / batch.heads_q;
    head = line - owner * batch.heads_q;
  } else {
    owner = tile::owner_of_tile(batch, tile_of_head);
    head = line;
    tile_of_head -= batch.sequences[owner].first_tile;
  }
  const tile::Sequence sequence = tile::sequence_of(batch, owner);
  const int first_query = tile_of_head * kConfig.tile_q();
  s_tile.valid = kFeatures == 0 ? 1 : owner + 1;
  s_tile.batch = sequence.batch;
  s_tile.head = head;
  s_tile.key_head = head / batch.group_size;
  s_tile.query_row = sequence.query_row;
  s_tile.key_row = sequence.key_row;
  s_tile.first_query = first_query;
  s_tile.queries = sequence.queries;
  s_tile.keys = sequence.keys;
  const tile::Bounds bounds = tile::bounds_of(params.band, sequence);
  s_tile.lower = bounds.lower;
  s_tile.upper = bounds.upper;
  if constexpr (kMask == MaskKind::listed) {
    const int row = listed_row(params.listed, params.listed.row_tiles, owner, head, tile_of_head);
    const tile::TileRange visits = tile::listed_visits(params.listed.rows, row);
    s_tile.begin = visits.begin;
    s_tile.end = visits.end;
    tile::prefetch_visit(params.listed.rows, visits.end - 1);
    return;
  }
  const tile::TileRange visits =
      tile::key_tiles<kMask>(bounds, sequence, first_query, kConfig.tile_q(), kConfig.tile_k);
  // One key tile even where all is hidden, so that the rows of every tile are defined.
  s_tile.begin = visits.begin;
  s_tile.end = max(visits.end, visits.begin + 1);
  if constexpr (kHasRowsOfStatistics<Params>) {
    s_tile.first_line = sequence.first_line;
  } else if constexpr (kStartsAtDiagonal<kMask, kFeatures>) {
    const int tile =
        diagonal_key<kFeatures>(params.score, s_tile, min(first_query + kConfig.tile_q(), sequence.queries) - 1) /
        kConfig.tile_k;
    s_tile.turn = s_tile.end - 1 - max(s_tile.begin, min(tile, s_tile.end - 1));
  }
}

// Asks for the first keys and values of a tile of queries, to the L2 cache.
template <ForwardConfig kConfig>
struct KeyPrefetcher {
  template <class Params>
  TESSERA_DEVICE void operator()(const Params& params, const ForwardTile& work) const {
    const int row = work.key_row + (work.end - 1) * kConfig.tile_k;
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::prefetch_box(params.k, x * ForwardConfig::kSubTileColumns, row, work.key_head, work.batch);
      ptx::prefetch_box(params.v, x * ForwardConfig::kSubTileColumns, row, work.key_head, work.batch);
    }
  }
};

// One thread that hands out tiles, and has something to do with each. It is not the one that loads keys, which would stand still
// for as long as the counter takes.
template <ForwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures, class Params, class Shared,
          class Action = KeyPrefetcher<kConfig>>
TESSERA_DEVICE void schedule(const Params& params, const Shared& shared, int twin, Action action = {}) {
  tile::RingPosition<ForwardConfig::kTileSlots> slot;
  const TileOrder& order = params.order;
  const int stride = static_cast<int>(gridDim.x) * kConfig.twins();
  int index = static_cast<int>(blockIdx.x) + (kConfig.twins() > 1 ? twin * static_cast<int>(gridDim.x) : 0);
  for (int round = 0; index < order.tiles; ++round) {
    const int number = order.dealt != nullptr ? order.dealt[index] : index;
    if (number < 0) {  // dealt tiles come to an end in the last rounds
      break;
    }
    ptx::mbarrier_wait(shared.bar_tile_empty + slot.slot, slot.parity ^ 1);
    const ForwardTile& work = shared.tiles[slot.slot];
    decode_tile<kConfig, kMask, kFeatures>(params, number, shared.tiles[slot.slot]);
    ptx::mbarrier_arrive(shared.bar_tile_full + slot.slot);
    action(params, work);
    slot.advance();
    if (order.dealt == nullptr) {
      ptx::mbarrier_wait(shared.bar_claim, round & 1);
    }
    index = stride + (order.counter != nullptr ? atomicAdd(order.counter, 1) : index);
  }
  ptx::mbarrier_wait(shared.bar_tile_empty + slot.slot, slot.parity ^ 1);
  shared.tiles[slot.slot].valid = 0;
  ptx::mbarrier_arrive(shared.bar_tile_full + slot.slot);
}

// Loads the queries of each tile, 64 of a warpgroup as soon as there is room, so that they are there in time although they come
// from memory and not, like most keys, from the L2 cache. Asking the L2 cache for the tile's keys ahead of time only delays what
// others wait for: short sequences lost up to a tenth by it.
template <ForwardConfig kConfig>
class QueryLoader {
 public:
  TESSERA_DEVICE explicit QueryLoader(const ForwardShared<kConfig>& shared) : shared_(shared) {}

  TESSERA_DEVICE void operator()(const ForwardParams& params, const ForwardTile& work) {
    ptx::wait_for_last_grid();
#pragma unroll
    for (int w = 0; w < kConfig.warpgroups; ++w) {
      std::uint64_t* bar_full = shared_.bar_query_full + slot_.slot;
      ptx::mbarrier_wait(shared_.bar_query_empty + slot_.slot, slot_.parity ^ 1);
      ptx::mbarrier_arrive_expect(bar_full, kConfig.query_bytes());
#pragma unroll
      for (int x = 0; x < kConfig.sub_tiles(); ++x) {
        ptx::copy_box(shared_.queries + slot_.slot * kConfig.query_bytes() + x * 64 * 128, params.q, bar_full,
                      x * ForwardConfig::kSubTileColumns, work.query_row + work.first_query + w * 64, work.head,
                      work.batch);
      }
      slot_.advance();
    }
  }

 private:
  const ForwardShared<kConfig>& shared_;
  tile::RingPosition<kConfig.query_slots()> slot_;
};

// One thread that loads keys and values. Keys go a tile ahead of values: the scores of a tile of keys are computed with the
// output of the one before it, so that room for keys is free a step earlier, and they are needed before the values.
template <ForwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures>
class KeyLoader {
 public:
  TESSERA_DEVICE KeyLoader(const ForwardParams& params, const ForwardShared<kConfig>& shared)
      : params_(params), shared_(shared) {}

  TESSERA_DEVICE void run() {
    for (;; tile_.advance()) {
      ptx::mbarrier_wait(shared_.bar_tile_full + tile_.slot, tile_.parity);
      const ForwardTile& work = shared_.tiles[tile_.slot];
      if (work.valid == 0) {
        break;
      }
      for (int j = work.end - 1; j >= work.begin; --j) {
        if (j == min(work.end, work.begin + kClaimedAhead) - 1) {
          ptx::mbarrier_arrive(shared_.bar_claim);
        }
        const int tile = kStartsAtDiagonal<kMask, kFeatures> ? key_tile_of(work, j) : j;
        const Box box{kMask == MaskKind::listed ? announce(work, j) : work.key_row + tile * kConfig.tile_k,
                      work.key_head, work.batch};
        load(params_.k, shared_.keys, shared_.bar_key_full, shared_.bar_key_empty, stage_, box);
        load_values();
        values_ = box;
        stage_.advance();
      }
      ptx::mbarrier_arrive(shared_.bar_tile_empty + tile_.slot);
    }
    load_values();
  }

 private:
  // Key tiles before the end of a tile of queries at which the next one is claimed, late enough for the counter to balance the
  // blocks.
  static constexpr int kClaimedAhead = 4;

  // A tile of K or V.
  struct Box {
    int row, head, batch;
  };

  // Under a listed mask: tells the consumers what the next stage will hold, which is visit `number`, and returns its first row.
  // Sixteen visits are a line of the L1 cache: reading the next one ahead of time only cost registers.
  TESSERA_DEVICE int announce(const ForwardTile& work, int number) const {
    const ListedVisit visit = tile::listed_visit(params_.listed.rows, number);
    ptx::mbarrier_wait(shared_.bar_key_empty + stage_.slot, stage_.parity ^ 1);
    shared_.visits[stage_.slot] = visit;
    return tile::listed_first_row<kConfig.tile_k>(visit, work.key_row);
  }

  // Those of the key tile before.
  TESSERA_DEVICE void load_values() const {
    if (values_.batch >= 0) {
      load(params_.v, shared_.values, shared_.bar_value_full, shared_.bar_value_empty, stage_.before(1), values_);
    }
  }

  TESSERA_DEVICE void load(const TensorMap& map, std::uint8_t* s_stages, std::uint64_t* bar_full,
                           std::uint64_t* bar_empty, const tile::RingPosition<kConfig.stages>& stage,
                           const Box& box) const {
    ptx::mbarrier_wait(bar_empty + stage.slot, stage.parity ^ 1);
    std::uint64_t* bar = bar_full + stage.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.key_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage.slot * kConfig.key_bytes() + x * kConfig.tile_k * 128, map, bar,
                    x * ForwardConfig::kSubTileColumns, box.row, box.head, box.batch);
    }
  }

  const ForwardParams& params_;
  const ForwardShared<kConfig>& shared_;
  Box values_{0, 0, -1};  // to be loaded next
  tile::RingPosition<kConfig.stages> stage_;
  tile::RingPosition<ForwardConfig::kTileSlots> tile_;
};

}  // namespace tessera::sm90
