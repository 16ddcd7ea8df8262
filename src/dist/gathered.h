// Where the results of tasks come together: O with its LSE, or one gradient.
//
// On the CPU tasks write float32 and each result is added at once. On a device they write 16 bits, and the sum is bound by
// memory: results wait in slots, so that several are summed in one go, and what has few terms never goes through float32
// memory at all.
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
  // Of a gradient the LSEs are absent. `sum` is float32; `slots` have the dtype of the tasks. `eager`: slots are emptied after
  // each task, and are memory that others use in between.
  Gathered(const PlaceGrid& grid, std::vector<Partial> slots, const Partial& sum, bool eager, int threads,
           void* stream);

  // The sum holds something already.
  void begin_with_sum();
  // Memory for one task's result at `place`.
  Partial open(const Place& place);
  // The task has written it.
  void close();
  // One more term for all of it, which stays as it is until the end, unless `eager`.
  void add(const Partial& term);
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
  bool eager_ = true;
  int threads_ = 0;
  void* stream_ = nullptr;
};

}  // namespace tessera::internal
