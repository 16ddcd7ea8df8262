// Whose turn it is to add to dQ of a tile of queries: a counter of the terms that are in it.
#pragma once

#include "cuda/ptx/reduce.cuh"

namespace tessera::sm80 {

// Until `turn` terms are there, of which `seen` were a while ago. Nothing but additions in the L2 cache, where those before them were
// done, depends on it.
TESSERA_DEVICE void await_turn(const std::int32_t* g_terms, int seen, int turn) {
  while (seen != turn) {
    seen = ptx::acquire_load(g_terms);
  }
}

// Hands on the tile that was added to last, if that is not done. All threads have added, and met at a barrier since: one fence is
// enough for them, and stalls one warp while its neighbour multiplies.
TESSERA_DEVICE void pass_turn(std::int32_t*& s_added) {
  if (threadIdx.x == 0 && s_added != nullptr) {
    ptx::release_add(s_added, 1);
    s_added = nullptr;
  }
}

}  // namespace tessera::sm80
