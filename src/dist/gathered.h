// Where the results of tasks come together: O with its LSE, or one gradient.
//
// Sums are bound by memory. On a device tasks write 16 bits: results wait in slots, so that several are summed in one go, and
// what has few terms never goes through float32 memory at all. On the CPU tasks write float32, the first of them into the sum
// itself; the last one waits in a slot and is added on the way to the output.
#pragma once

#include <vector>

#include "dist/tensor_ops.h"
#include "tessera/attention.h"
#include "tessera/mask.h"

namespace tessera::internal {

// A part of a [batch, tokens, heads, dim] tensor and of its LSE [batch, heads, tokens].
struct Place {
  Range batch;
  Range rows;
  Range heads;
};
Partial cut(const Partial& whole, const Place& place);

// How the places of tasks can differ: each is made of whole cells of this grid, but for the last rows of a cell.
struct PlaceGrid {
  std::vector<Range> batches;
  std::vector<Range> rows;
  std::vector<Range> heads;
};

class Gathered {
 public:
  Gathered() = default;
  // Of a gradient the LSEs are absent. `sum` is float32; `slots` have the dtype of the tasks. `shared_slots`: others use
  // them too, so that they are emptied after each task.
  Gathered(const PlaceGrid& grid, std::vector<Partial> slots, const Partial& sum, bool shared_slots, int threads,
           void* stream);

  // The sum holds something already.
  void begin_with_sum();
  // Memory for one task's result at `place`.
  Partial open(const Place& place);
  // The task has written it.
  void close();
  // One more term for all of it, which stays as it is until it is folded or the end.
  void add(const Partial& term) { others_.push_back(term); }
  // Everything into the sum; zeros, or LSE of -inf, where nothing came.
  void fold();
  // Everything into `target`.
  void result(const Partial& target);

 private:
  struct Cell {
    Place place;
    bool summed = false;
    unsigned slots = 0;  // a bit for each that holds a term
  };

  void fold(Cell& cell);
  void clear(const Partial& part);
  void combine(std::span<const ConstPartial> terms, const Partial& target);

  std::vector<Cell> cells_;
  std::vector<Partial> slots_;
  std::vector<Partial> others_;
  Partial sum_;
  bool shared_slots_ = false;
  int threads_ = 0;
  void* stream_ = nullptr;
};

}  // namespace tessera::internal
