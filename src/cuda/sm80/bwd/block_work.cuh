// What the threads of a block share about its work, in shared memory, since registers are what these kernels lack: the tile that it
// owns and, where warps meet once a step, its steps. One thread works a step out, two steps ahead: for all of them it would be a
// fifth of their instructions.
#pragma once

#include "cuda/sm80/bwd/loader.cuh"
#include "cuda/sm80/bwd/scores.cuh"

namespace tessera::sm80 {

struct StepWork {
  std::int64_t first[2];        // offsets of the first rows to copy: Q and dO, or K and V
  std::int64_t statistics_row;  // of lse_log2, delta and dq_sum
  std::int32_t rows;            // that are there
  std::int32_t simple;          // both tiles are whole pieces of 16 bytes, and no row or column is missing
  std::int32_t head;            // of the queries
  std::int32_t query_tile, key_tile;
  std::int32_t bits;   // of a listed visit
  std::int32_t whole;  // nothing of it is hidden
  std::int32_t turn;   // role joint, in turns
  std::int32_t valid;  // else there is no such step
};

struct ItemWork {
  OwnedTile owned;
  // Role joint:
  JointItem item;
  OwnedTile upcoming;   // of `item`
  bool valid;           // else there is none
  std::int32_t* added;  // see turn.cuh
};
template <BackwardConfig kConfig, BackwardRole kRole, bool kGated = kConfig.gated()>
struct BlockWork : ItemWork {
  using Cursor = typename BackwardCursor<kConfig, kRole>::Type;
  typename Cursor::State cursor;
  StepWork steps[4];
};
template <BackwardConfig kConfig, BackwardRole kRole>
struct BlockWork<kConfig, kRole, false> : ItemWork {};

// The thread that writes them: of a warp that has no statistics to copy and no turns to hand on.
template <BackwardConfig kConfig>
TESSERA_DEVICE bool works_out() {
  return threadIdx.x == kConfig.threads() - 32;
}

// Role joint: works out the next item.
template <BackwardConfig kConfig>
TESSERA_DEVICE void work_out_next_item(const BackwardParams& params, ItemWork& s_work) {
  JointItems<kConfig> items(params, s_work.item);
  items.advance();
  s_work.item = items.at();
  s_work.valid = items.valid();
  if (items.valid()) {
    s_work.upcoming = items.owned();
  }
}
// Goes to it, if there is one. Where there is a gate, the one after that is worked out in the meantime, while the first tiles are
// under way.
template <BackwardConfig kConfig>
TESSERA_DEVICE bool next_item(const BackwardParams& params, ItemWork& s_work) {
  if (works_out<kConfig>()) {
    if constexpr (!kConfig.gated()) {
      work_out_next_item<kConfig>(params, s_work);
    }
    if (s_work.valid) {
      s_work.owned = s_work.upcoming;
    }
  }
  __syncthreads();
  return s_work.valid;
}

// A step as the products see it.
struct SharedStep {
  const OwnedTile& owned;
  const StepWork& work;
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned.sequence; }
  TESSERA_DEVICE int index() const { return owned.index; }
  TESSERA_DEVICE int head() const { return work.head; }
  TESSERA_DEVICE int query_tile() const { return work.query_tile; }
  TESSERA_DEVICE int key_tile() const { return work.key_tile; }
  TESSERA_DEVICE int bits() const { return work.bits; }
  TESSERA_DEVICE bool whole() const { return work.whole != 0; }
  TESSERA_DEVICE std::int64_t statistics_row() const { return work.statistics_row; }
  TESSERA_DEVICE int turn() const { return work.turn; }
};

// Steps have numbers, which go on from tile to tile of a block: with their work in four places, one is not overwritten before
// every warp has met the others after it.
template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class SharedSteps {
  using Work = BlockWork<kConfig, kRole>;
  using Cursor = typename Work::Cursor;
  using Tiles = BackwardTiles<kConfig, kRole>;

 public:
  TESSERA_DEVICE SharedSteps(const BackwardParams& params, const Tiles& tiles, Work& s_work)
      : params_(params), copies_{params, tiles}, s_work_(s_work) {}

  // Copies what stays.
  TESSERA_DEVICE void begin() const {
    copies_.load_owned(s_work_.owned);
    if (works_out<kConfig>()) {
      s_work_.cursor = Cursor(params_, s_work_.owned).state();
    }
  }
  TESSERA_DEVICE void work_out(int step) const {
    if (works_out<kConfig>()) {
      Cursor cursor(params_, s_work_.owned, s_work_.cursor);
      write(cursor, step);
      s_work_.cursor = cursor.state();
    }
  }
  TESSERA_DEVICE void work_out_item() const {
    if (kRole == BackwardRole::joint && works_out<kConfig>()) {
      work_out_next_item<kConfig>(params_, s_work_);
    }
  }
  TESSERA_DEVICE bool valid(int step) const { return work_of(step).valid != 0; }
  TESSERA_DEVICE SharedStep step(int step) const { return {s_work_.owned, work_of(step)}; }

  TESSERA_DEVICE void load(int step) const {
    const StepWork& at = work_of(step);
    if constexpr (Tiles::kOwnsKeys) {
      copies_.load_queries(at.first[0], at.first[1], at.rows, 0, step & 1, at.simple != 0);
    } else {
      copies_.load_keys(at.first[0], at.first[1], at.rows, 0, step & 1, at.simple != 0);
    }
    copies_.load_statistics(at.statistics_row, step & 1);
  }

 private:
  TESSERA_DEVICE StepWork& work_of(int step) const { return s_work_.steps[step & 3]; }

  TESSERA_DEVICE void write(Cursor& cursor, int number) const {
    StepWork& work = work_of(number);
    work.valid = cursor.valid();
    if (!cursor.valid()) {
      return;
    }
    const tile::Sequence& sequence = cursor.sequence();
    if constexpr (Tiles::kOwnsKeys) {
      const int first = cursor.query_tile() * kConfig.tile_q;
      work.first[0] = row_offset(params_.q, sequence, sequence.query_row, cursor.head(), first);
      work.first[1] = row_offset(params_.dout, sequence, sequence.query_row, cursor.head(), first);
      work.rows = sequence.queries - first;
    } else {
      const int first = cursor.key_tile() * kConfig.tile_k;
      const int head = cursor.head() / params_.batch.group_size;
      work.first[0] = row_offset(params_.k, sequence, sequence.key_row, head, first);
      work.first[1] = row_offset(params_.v, sequence, sequence.key_row, head, first);
      work.rows = sequence.keys - first;
    }
    work.simple = copies_.is_simple(work.rows);
    work.statistics_row = statistics_row<kConfig>(params_, cursor);
    work.head = cursor.head();
    work.query_tile = cursor.query_tile();
    work.key_tile = cursor.key_tile();
    work.bits = cursor.bits();
    work.whole = sees_whole<kConfig>(params_, cursor);
    if constexpr (kRole == BackwardRole::joint) {
      work.turn = params_.turns.terms != nullptr ? cursor.turn(cursor.query_tile()) : 0;
    }
    cursor.advance();
  }

  const BackwardParams& params_;
  const BackwardCopies<kConfig, Element, Program, kRole> copies_;
  Work& s_work_;
};

}  // namespace tessera::sm80
