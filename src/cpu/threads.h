// Parallel loops on OpenMP. Exceptions do not cross them: every check comes before.
#pragma once

#include <omp.h>

#include <cstdint>

namespace tessera::internal {

inline int default_threads() { return omp_get_max_threads(); }

// body(item, thread) for each item, taken in order by whichever of `threads` threads is free.
template <class Body>
void parallel_items(std::int64_t items, int threads, const Body& body) {
  if (threads == 1 || items <= 1) {
    for (std::int64_t item = 0; item < items; ++item) {
      body(item, 0);
    }
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t item = 0; item < items; ++item) {
    body(item, omp_get_thread_num());
  }
}

}  // namespace tessera::internal
