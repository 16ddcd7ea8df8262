// Which tiles of keys a block works on, one after the other.
#pragma once

#include "cuda/sm90/bwd/visits.cuh"

namespace tessera::sm90 {

enum class Tickets {
  grouped,  // groups of blocks where the order has them; otherwise the next tile is asked for as soon as one is handed out
  late,     // no groups; a tile is asked for when it is wanted
};

template <BackwardConfig kConfig, MaskKind kMask, std::uint32_t kFeatures = 0, Tickets kTickets = Tickets::grouped>
class BackwardTickets {
 public:
  TESSERA_DEVICE explicit BackwardTickets(const BackwardParams& params)
      : params_(params),
        deal_(params.order, lines(), static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)),
        index_(static_cast<int>(blockIdx.x)) {}

  // Decodes the next tile; `valid` is 0 when there are no more.
  TESSERA_DEVICE void next(BackwardTile& s_tile) {
    if constexpr (kMask == MaskKind::listed) {
      next_task(s_tile);
      return;
    }
    s_tile.valid = 0;
    if (kTickets == Tickets::grouped && params_.order.group > 0) {
      if (!deal_.done()) {
        decode(deal_.tile(), s_tile);
        deal_.advance();
      }
      return;
    }
    if (kTickets == Tickets::late && !first_) {
      index_ = following();
    }
    first_ = false;
    if (index_ < params_.order.tiles) {
      decode(numbered(index_), s_tile);
      if (kTickets == Tickets::grouped) {
        index_ = following();
      }
    }
  }

 private:
  // Of those that the plan deals to this block.
  TESSERA_DEVICE void next_task(BackwardTile& s_tile) {
    s_tile.valid = 0;
    if (index_ >= params_.order.tiles) {
      return;
    }
    const ListedTask task = params_.listed.tasks[index_];
    index_ += static_cast<int>(gridDim.x);
    if (task.number >= 0) {
      decode(numbered(task.number), s_tile);
      s_tile.begin = task.begin;
      s_tile.end = task.end;
    }
  }

  TESSERA_DEVICE int following() const {
    const int blocks = static_cast<int>(gridDim.x);
    return params_.order.counter != nullptr ? blocks + atomicAdd(params_.order.counter, 1) : index_ + blocks;
  }

  // (batch, key head) pairs, or key heads where the tiles of a head run over all sequences.
  TESSERA_DEVICE int lines() const {
    const Batch& batch = params_.batch;
    return (batch.sequences == nullptr ? batch.count : 1) * (batch.heads_q / batch.group_size);
  }

  // Tiles are numbered by sections of key heads, in a section by tiles of keys (under a causal mask the first are longest).
  TESSERA_DEVICE DealtTile numbered(int index) const {
    const BackwardOrder& order = params_.order;
    const int section_tiles = order.section_heads * order.tiles_of_head;
    const int first_line = index / section_tiles * order.section_heads;
    const int rest = index % section_tiles;
    const int width = min(order.section_heads, lines() - first_line);
    return {first_line + rest % width, rest / width, order.way};
  }

  TESSERA_DEVICE void decode(const DealtTile& dealt, BackwardTile& s_tile) const {
    const Batch& batch = params_.batch;
    const int key_heads = batch.heads_q / batch.group_size;
    const bool alike = batch.sequences == nullptr;
    const int line = dealt.line;
    int key_tile = dealt.key_tile;
    const int owner = alike ? line / key_heads : tile::owner_of_tile(batch, key_tile);
    const int key_head = alike ? line % key_heads : line;
    if (!alike) {
      key_tile -= batch.sequences[owner].first_tile;
    }
    const tile::Sequence sequence = tile::sequence_of(batch, owner);
    const tile::Bounds bounds = tile::bounds_of(params_.band, sequence);
    const int first_key = key_tile * kConfig.tile_k;
    const tile::TileRange visits =
        tile::query_tiles<kMask>(bounds, sequence, first_key, kConfig.tile_q, kConfig.tile_k);
    const int query_head = key_head * batch.group_size;
    s_tile.valid = kFeatures == 0 ? 1 : owner + 1;
    s_tile.batch = sequence.batch;
    s_tile.key_head = key_head;
    s_tile.query_row = sequence.query_row;
    s_tile.key_row = sequence.key_row;
    s_tile.first_key = first_key;
    s_tile.queries = sequence.queries;
    s_tile.keys = sequence.keys;
    s_tile.stored_keys = sequence.stored_keys;
    s_tile.lower = bounds.lower;
    s_tile.upper = bounds.upper;
    s_tile.begin = visits.begin;
    s_tile.end = visits.end;
    s_tile.statistics_row =
        (alike ? owner * batch.heads_q + query_head : query_head) * params_.line_rows + sequence.first_line;
    s_tile.statistics_stride = params_.line_rows;
    s_tile.start = BackwardTurns<kConfig, kMask>::visits(s_tile, dealt.way, params_.order).start();
  }

  const BackwardParams& params_;
  GroupDeal deal_;  // where there are groups
  int index_;
  bool first_ = true;  // none has been handed out
};

}  // namespace tessera::sm90
