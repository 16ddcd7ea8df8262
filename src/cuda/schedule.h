// The tile schedules of a problem in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/tile/listed.h"
#include "mask/schedule_lists.h"

namespace tessera::internal {

// The lists of one problem for one size of tiles. Made with a plan, uploaded once, immutable; equal bit masks are kept once.
class ListedSchedule {
 public:
  // `tile_k` is a multiple of 32; where `order` is by_key, `tile_q` is too. Rows of a tile that keep nothing exist and are
  // empty.
  ListedSchedule(int device, const Problem& problem, std::int64_t tile_q, std::int64_t tile_k,
                 BitOrder order = BitOrder::by_query);
  ListedSchedule(int device, const ScheduleLists& lists);
  ~ListedSchedule();

  const Listed& view() const;  // pointers are of the device
  std::int64_t visits() const;
  std::int64_t partial_visits() const;
  // For orders that take the longest first; numbered as by listed_row().
  std::int64_t row_visits(std::int64_t row) const;
  std::int64_t column_visits(std::int64_t column) const;
  std::size_t device_bytes() const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// Whether the mask needs lists: it has segments or blocks.
inline bool needs_lists(const Mask& mask) { return mask.has_segments() || mask.has_blocks(); }

}  // namespace tessera::internal
