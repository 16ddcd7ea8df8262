// Positions in rings of buffers.
#pragma once

#include "cuda/ptx/device.cuh"

namespace tessera::tile {

// Counts the uses of a ring of buffers: which one is next, and the parity of its phase.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  int parity = 0;
  TESSERA_DEVICE void advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
  // `steps`, at most kSlots, ago.
  TESSERA_DEVICE RingPosition before(int steps) const {
    const int earlier = slot - steps;
    return earlier < 0 ? RingPosition{earlier + kSlots, parity ^ 1} : RingPosition{earlier, parity};
  }
  // By `steps` of at most kSlots.
  TESSERA_DEVICE void advance(int steps) {
    slot += steps;
    if (slot >= kSlots) {
      slot -= kSlots;
      parity ^= 1;
    }
  }
};

}  // namespace tessera::tile
