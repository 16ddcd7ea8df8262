// Which block computes which tiles of keys of a listed mask, and in which order terms are added to dQ.
//
// The plan plays the kernel through in steps of one visit: a block that is done takes the next tile of keys, and of its next
// visits the first whose tile of queries had its last term long enough ago to be passed on. What happens there fixes the
// order of terms. A block waits for its turn at a tile of queries, that is for visits that the play had before it: the order of
// the play is one in which all can be computed, so that blocks which all run at once come to an end.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/listed_order.h"
#include "cuda/sm90/bwd/listed.h"

namespace tessera::internal {

struct ListedPlay {
  std::vector<sm90::ListedTask> tasks;  // rounds of `blocks` each
  std::vector<sm90::ListedTerm> terms;
  std::vector<sm90::ListedSum> sums;  // of all tiles of queries, those that get their last term first before others
};

// `tiles` are those of keys in the order in which they are taken. `query_table` is empty where all sequences are alike;
// `line_tiles` are the tiles of queries of one line of statistics.
ListedPlay play_listed_backward(const Problem& problem, const ScheduleLists& lists,
                                const std::vector<ListedTile>& tiles, const SequenceTable& query_table,
                                std::int64_t line_tiles, std::int64_t tile_q, std::int64_t blocks);

}  // namespace tessera::internal
