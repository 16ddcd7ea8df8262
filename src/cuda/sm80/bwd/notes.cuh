// What the threads of a block share about its work, in shared memory, since registers are what these kernels lack: the tile that it
// owns and, where warps meet once a step, its steps. One thread works a step out, two steps ahead: for all of them it would be a
// fifth of their instructions.
#pragma once

#include "cuda/sm80/bwd/loader.cuh"
#include "cuda/sm80/bwd/scores.cuh"

namespace tessera::sm80 {

struct StepNote {
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

struct ItemNotes {
  OwnedTile owned;
  // Role joint:
  JointItem item;
  OwnedTile upcoming;   // of `item`
  bool valid;           // else there is none
  std::int32_t* added;  // see turn.cuh
};
template <BackwardConfig kConfig, BackwardRole kRole, bool kGated = kConfig.gated()>
struct BackwardNotes : ItemNotes {
  using Cursor = typename BackwardCursor<kConfig, kRole>::Type;
  typename Cursor::State cursor;
  StepNote steps[4];
};
template <BackwardConfig kConfig, BackwardRole kRole>
struct BackwardNotes<kConfig, kRole, false> : ItemNotes {};

// The thread that writes them: of a warp that has no statistics to copy and no turns to hand on.
template <BackwardConfig kConfig>
TESSERA_DEVICE bool writes_notes() {
  return threadIdx.x == kConfig.threads() - 32;
}

// Role joint: works out the next item.
template <BackwardConfig kConfig>
TESSERA_DEVICE void note_item(const BackwardParams& params, ItemNotes& s_notes) {
  JointItems<kConfig> items(params, s_notes.item);
  items.advance();
  s_notes.item = items.at();
  s_notes.valid = items.valid();
  if (items.valid()) {
    s_notes.upcoming = items.owned();
  }
}
// Goes to it, if there is one. Where there is a gate, the one after that is worked out in the meantime, while the first tiles are
// under way.
template <BackwardConfig kConfig>
TESSERA_DEVICE bool next_item(const BackwardParams& params, ItemNotes& s_notes) {
  if (writes_notes<kConfig>()) {
    if constexpr (!kConfig.gated()) {
      note_item<kConfig>(params, s_notes);
    }
    if (s_notes.valid) {
      s_notes.owned = s_notes.upcoming;
    }
  }
  __syncthreads();
  return s_notes.valid;
}

// A step as the products see it.
struct NotedStep {
  const OwnedTile& owned;
  const StepNote& note;
  TESSERA_DEVICE const tile::Sequence& sequence() const { return owned.sequence; }
  TESSERA_DEVICE int index() const { return owned.index; }
  TESSERA_DEVICE int head() const { return note.head; }
  TESSERA_DEVICE int query_tile() const { return note.query_tile; }
  TESSERA_DEVICE int key_tile() const { return note.key_tile; }
  TESSERA_DEVICE int bits() const { return note.bits; }
  TESSERA_DEVICE bool whole() const { return note.whole != 0; }
  TESSERA_DEVICE std::int64_t statistics_row() const { return note.statistics_row; }
  TESSERA_DEVICE int turn() const { return note.turn; }
};

// Steps have numbers, which go on from tile to tile of a block: with their notes in four places, one is not overwritten before
// every warp has met the others after it.
template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class NotedSteps {
  using Notes = BackwardNotes<kConfig, kRole>;
  using Cursor = typename Notes::Cursor;
  using Tiles = BackwardTiles<kConfig, kRole>;

 public:
  TESSERA_DEVICE NotedSteps(const BackwardParams& params, const Tiles& tiles, Notes& s_notes)
      : params_(params), copies_{params, tiles}, s_notes_(s_notes) {}

  // Copies what stays.
  TESSERA_DEVICE void begin() const {
    copies_.load_owned(s_notes_.owned);
    if (writes_notes<kConfig>()) {
      s_notes_.cursor = Cursor(params_, s_notes_.owned).state();
    }
  }
  TESSERA_DEVICE void work_out(int step) const {
    if (writes_notes<kConfig>()) {
      Cursor cursor(params_, s_notes_.owned, s_notes_.cursor);
      write(cursor, step);
      s_notes_.cursor = cursor.state();
    }
  }
  TESSERA_DEVICE void work_out_item() const {
    if (kRole == BackwardRole::joint && writes_notes<kConfig>()) {
      note_item<kConfig>(params_, s_notes_);
    }
  }
  TESSERA_DEVICE bool valid(int step) const { return note(step).valid != 0; }
  TESSERA_DEVICE NotedStep step(int step) const { return {s_notes_.owned, note(step)}; }

  TESSERA_DEVICE void load(int step) const {
    const StepNote& at = note(step);
    if constexpr (Tiles::kOwnsKeys) {
      copies_.load_queries(at.first[0], at.first[1], at.rows, 0, step & 1, at.simple != 0);
    } else {
      copies_.load_keys(at.first[0], at.first[1], at.rows, 0, step & 1, at.simple != 0);
    }
    copies_.load_statistics(at.statistics_row, step & 1);
  }

 private:
  TESSERA_DEVICE StepNote& note(int step) const { return s_notes_.steps[step & 3]; }

  TESSERA_DEVICE void write(Cursor& cursor, int number) const {
    StepNote& note = this->note(number);
    note.valid = cursor.valid();
    if (!cursor.valid()) {
      return;
    }
    const tile::Sequence& sequence = cursor.sequence();
    if constexpr (Tiles::kOwnsKeys) {
      const int first = cursor.query_tile() * kConfig.tile_q;
      note.first[0] = row_offset(params_.q, sequence, sequence.query_row, cursor.head(), first);
      note.first[1] = row_offset(params_.dout, sequence, sequence.query_row, cursor.head(), first);
      note.rows = sequence.queries - first;
    } else {
      const int first = cursor.key_tile() * kConfig.tile_k;
      const int head = cursor.head() / params_.batch.group_size;
      note.first[0] = row_offset(params_.k, sequence, sequence.key_row, head, first);
      note.first[1] = row_offset(params_.v, sequence, sequence.key_row, head, first);
      note.rows = sequence.keys - first;
    }
    note.simple = copies_.is_simple(note.rows);
    note.statistics_row = statistics_row<kConfig>(params_, cursor);
    note.head = cursor.head();
    note.query_tile = cursor.query_tile();
    note.key_tile = cursor.key_tile();
    note.bits = cursor.bits();
    note.whole = sees_whole<kConfig>(params_, cursor);
    if constexpr (kRole == BackwardRole::joint) {
      note.turn = params_.turns.terms != nullptr ? cursor.turn(cursor.query_tile()) : 0;
    }
    cursor.advance();
  }

  const BackwardParams& params_;
  const BackwardCopies<kConfig, Element, Program, kRole> copies_;
  Notes& s_notes_;
};

}  // namespace tessera::sm80
