// Whose turn it is to add to dQ of a tile of queries: a counter of the terms that are in it.
#pragma once

#include "cuda/ptx/reduce.cuh"

namespace tessera::sm80 {

class DqTurn {
 public:
  // Of the tile that comes next. What is read here is there when it is needed.
  TESSERA_DEVICE void look(std::int32_t* g_terms) {
    g_terms_ = g_terms;
    terms_ = ptx::relaxed_load(g_terms);
  }
  // Until `turn` terms are there. Nothing but additions in the L2 cache, where those before them were done, depends on it.
  TESSERA_DEVICE void await(int turn) {
    while (terms_ != turn) {
      terms_ = ptx::acquire_load(g_terms_);
    }
  }
  // Hands the tile on, if there is one. All threads have added, and met at a barrier since: one fence is enough for them, and
  // stalls one warp while its neighbour multiplies.
  TESSERA_DEVICE void pass() {
    if (g_terms_ != nullptr && threadIdx.x == 0) {
      ptx::release_add(g_terms_, 1);
    }
    g_terms_ = nullptr;
  }

 private:
  std::int32_t* g_terms_ = nullptr;
  int terms_ = 0;
};

}  // namespace tessera::sm80
