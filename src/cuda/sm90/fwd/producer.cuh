// The producer warpgroup of the forward kernel: a thread that hands out tiles and one that loads them.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/tile/listed.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::sm90 {

// Whether a kernel with these parameters, which hands out tiles of queries as the forward one does, asks for ForwardTile::first_line.
template <class Params>
inline constexpr bool kHasRowsOfStatistics = false;

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
  }
}

// The first keys and values of a tile of queries, to the L2 cache.
template <ForwardConfig kConfig, class Params>
TESSERA_DEVICE void prefetch_keys(const Params& params, const ForwardTile& work) {
  const int row = work.key_row + (work.end - 1) * kConfig.tile_k;
  const int head = work.head / params.batch.group_size;
#pragma unroll
  for (int x = 0; x < kConfig.sub_tiles(); ++x) {
    ptx::prefetch_box(params.k, x * ForwardConfig::kSubTileColumns, row, head, work.batch);
    ptx::prefetch_box(params.v, x * ForwardConfig::kSubTileColumns, row, head, work.batch);
  }
}

// One thread that hands out tiles. It is not the one that loads, which would stand still for as long as the counter takes.
template <ForwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures, class Params, class Shared>
TESSERA_DEVICE void schedule(const Params& params, const Shared& shared, int twin) {
  tile::RingPosition<ForwardConfig::kTileSlots> slot;
  const TileOrder& order = params.order;
  const int stride = static_cast<int>(gridDim.x) * kConfig.twins();
  int index = static_cast<int>(blockIdx.x) + (kConfig.twins() > 1 ? twin * static_cast<int>(gridDim.x) : 0);
  for (int round = 0; index < order.tiles; ++round) {
    int number = index;
    if constexpr (kMask == MaskKind::listed) {
      number = params.listed_order[index];
      if (number < 0) {  // dealt tiles come to an end in the last rounds
        break;
      }
    }
    ptx::mbarrier_wait(shared.bar_tile_empty + slot.slot, slot.parity ^ 1);
    decode_tile<kConfig, kMask, kFeatures>(params, number, shared.tiles[slot.slot]);
    ptx::mbarrier_arrive(shared.bar_tile_full + slot.slot);
    if constexpr (kMask != MaskKind::listed) {
      prefetch_keys<kConfig>(params, shared.tiles[slot.slot]);
    }
    slot.advance();
    ptx::mbarrier_wait(shared.bar_claim, round & 1);
    index = stride + (order.counter != nullptr ? atomicAdd(order.counter, 1) : index);
  }
  ptx::mbarrier_wait(shared.bar_tile_empty + slot.slot, slot.parity ^ 1);
  shared.tiles[slot.slot].valid = 0;
  ptx::mbarrier_arrive(shared.bar_tile_full + slot.slot);
}

// One thread that keeps the copy engine busy. The queries of a tile are loaded before the last keys of the one before it, so
// that they are there in time although they come from memory and not, like most keys, from the L2 cache.
template <ForwardConfig kConfig, MaskKind kMask>
class ForwardLoader {
 public:
  TESSERA_DEVICE ForwardLoader(const ForwardParams& params, const ForwardShared<kConfig>& shared)
      : params_(params), shared_(shared) {}

  TESSERA_DEVICE void run() {
    Keys keys = next_tile();
    while (keys.count > 0) {
      Keys next{};
      for (int i = 0; i < keys.count; ++i) {
        if (i == max(keys.count - kClaimedAhead, 0)) {
          ptx::mbarrier_arrive(shared_.bar_claim);
        }
        const int row = kMask == MaskKind::listed ? announce(keys, i) : keys.last_row - i * kConfig.tile_k;
        load(params_.k, shared_.keys, shared_.bar_key_full, shared_.bar_key_empty, row, keys);
        load(params_.v, shared_.values, shared_.bar_value_full, shared_.bar_value_empty, row, keys);
        stage_.advance();
        if (i == max(keys.count - kQueriesAhead, 0)) {
          next = next_tile();
        }
      }
      keys = next;
    }
  }

 private:
  static constexpr int kColumns = ForwardConfig::kSubTileColumns;
  // Key tiles before the end of a tile of queries at which the next one is taken, late enough for the counter to balance the
  // blocks; and at which its queries are loaded. With one buffer the queries wait for the last scores, and go last.
  static constexpr int kClaimedAhead = 4;
  static constexpr int kQueriesAhead = kConfig.query_buffers() > 1 ? 2 : 1;

  // The key tiles of a tile of queries: `count` of them, downwards from the one that begins at row `last_row`; under a listed
  // mask from visit `last_visit`.
  struct Keys {
    int count, last_row, head, batch;
    int key_row, last_visit;
  };

  // Under a listed mask: tells the consumers what the next stage will hold, which is key tile i of those to visit, and returns
  // its first row. Sixteen visits are a line of the L1 cache: reading the next one ahead of time only cost registers.
  TESSERA_DEVICE int announce(const Keys& keys, int i) const {
    const ListedVisit visit = tile::listed_visit(params_.listed.rows, keys.last_visit - i);
    ptx::mbarrier_wait(shared_.bar_key_empty + stage_.slot, stage_.parity ^ 1);
    shared_.visits[stage_.slot] = visit;
    return tile::listed_first_row<kConfig.tile_k>(visit, keys.key_row);
  }

  // The next tile, none when there are no more, with its queries on the way.
  TESSERA_DEVICE Keys next_tile() {
    ptx::mbarrier_wait(shared_.bar_tile_full + slot_.slot, slot_.parity);
    const ForwardTile& work = shared_.tiles[slot_.slot];
    slot_.advance();
    if (work.valid == 0) {
      return {};
    }
    Keys keys{work.end - work.begin, work.key_row + (work.end - 1) * kConfig.tile_k,
              work.head / params_.batch.group_size, work.batch};
    if constexpr (kMask == MaskKind::listed) {
      const ListedVisit first = tile::listed_visit(params_.listed.rows, work.end - 1);
      keys.last_row = tile::listed_first_row<kConfig.tile_k>(first, work.key_row);
      keys.key_row = work.key_row;
      keys.last_visit = work.end - 1;
    }
    std::uint64_t* bar_full = shared_.bar_query_full + buffer_.slot;
    ptx::mbarrier_wait(shared_.bar_query_empty + buffer_.slot, buffer_.parity ^ 1);
    ptx::mbarrier_arrive_expect(bar_full, kConfig.query_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(shared_.queries + buffer_.slot * kConfig.query_bytes() + x * kConfig.tile_q() * 128, params_.q,
                    bar_full, x * kColumns, work.query_row + work.first_query, work.head, work.batch);
    }
    buffer_.advance();
    if constexpr (kMask == MaskKind::listed) {
#pragma unroll
      for (int x = 0; x < kConfig.sub_tiles(); ++x) {
        ptx::prefetch_box(params_.k, x * kColumns, keys.last_row, keys.head, keys.batch);
        ptx::prefetch_box(params_.v, x * kColumns, keys.last_row, keys.head, keys.batch);
      }
    }
    return keys;
  }

  TESSERA_DEVICE void load(const TensorMap& map, std::uint8_t* s_stages, std::uint64_t* bar_full,
                           std::uint64_t* bar_empty, int row, const Keys& keys) const {
    ptx::mbarrier_wait(bar_empty + stage_.slot, stage_.parity ^ 1);
    std::uint64_t* bar = bar_full + stage_.slot;
    ptx::mbarrier_arrive_expect(bar, kConfig.key_bytes());
#pragma unroll
    for (int x = 0; x < kConfig.sub_tiles(); ++x) {
      ptx::copy_box(s_stages + stage_.slot * kConfig.key_bytes() + x * kConfig.tile_k * 128, map, bar, x * kColumns,
                    row, keys.head, keys.batch);
    }
  }

  const ForwardParams& params_;
  const ForwardShared<kConfig>& shared_;
  tile::RingPosition<kConfig.stages> stage_;
  tile::RingPosition<ForwardConfig::kTileSlots> slot_;
  tile::RingPosition<kConfig.query_buffers()> buffer_;
};

}  // namespace tessera::sm90
