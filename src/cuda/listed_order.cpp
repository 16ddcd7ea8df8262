#include "cuda/listed_order.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "core/fail.h"

namespace tessera::internal {

namespace {

// Those of one sequence and key head.
struct Pair {
  std::vector<ListedTile> tiles;
  std::int64_t visits = 0;
  std::int64_t bytes = 0;
};

std::int64_t visits_of(const Problem& problem, const ScheduleLists& lists, ListedSide side, const ListedTile& tile) {
  if (side == ListedSide::queries) {
    return std::ssize(lists.rows[lists.row_of(tile.sequence, tile.head, tile.tile)]);
  }
  std::int64_t visits = 0;
  for (std::int64_t member = 0; member < problem.group_size(); ++member) {
    const std::int64_t head = tile.head * problem.group_size() + member;
    visits += std::ssize(lists.columns[lists.column_of(tile.sequence, head, tile.tile)]);
  }
  return visits;
}

Pair pair_of(const Problem& problem, const ScheduleLists& lists, ListedSide side, const SequenceTable& table,
             const ListedSizes& sizes, std::int64_t sequence, std::int64_t key_head) {
  const bool of_queries = side == ListedSide::queries;
  const bool alike = table.entries.empty();
  const SequenceSpan span = problem.sequence(sequence);
  const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  const SequenceEntry entry =
      alike ? SequenceEntry{0, 0, narrow(span.queries), narrow(span.keys), narrow(problem.seq_k), 0, 0}
            : table.entries[static_cast<std::size_t>(sequence)];
  const std::int64_t tiles = ceil_div(of_queries ? entry.queries : entry.stored_keys, sizes.tile);
  const std::int64_t heads = of_queries ? problem.heads_q : problem.heads_kv;
  const std::int64_t members = of_queries ? problem.group_size() : 1;
  Pair pair;
  pair.bytes = sizes.token_bytes * (of_queries ? entry.keys : entry.queries * problem.group_size());
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t head = key_head * members; head < (key_head + 1) * members; ++head) {
      const std::int64_t line = alike ? sequence * heads + head : head;
      ListedTile item{narrow(line * sizes.tiles_of_head + entry.first_tile + tile), narrow(sequence), narrow(head),
                      narrow(tile), 0};
      item.visits = visits_of(problem, lists, side, item);
      pair.visits += item.visits;
      pair.tiles.push_back(item);
    }
  }
  return pair;
}

}  // namespace

std::vector<ListedTile> order_listed_tiles(const Problem& problem, const ScheduleLists& lists, ListedSide side,
                                           const SequenceTable& table, const ListedSizes& sizes) {
  std::vector<Pair> pairs;
  for (std::int64_t sequence = 0; sequence < problem.batch; ++sequence) {
    for (std::int64_t key_head = 0; key_head < problem.heads_kv; ++key_head) {
      pairs.push_back(pair_of(problem, lists, side, table, sizes, sequence, key_head));
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.visits > b.visits; });
  std::vector<ListedTile> order;
  std::size_t first = 0;  // of the section
  std::int64_t bytes = 0;
  const auto end_section = [&] {
    std::stable_sort(order.begin() + static_cast<std::ptrdiff_t>(first), order.end(),
                     [side](const ListedTile& a, const ListedTile& b) {
                       return a.visits != b.visits ? a.visits > b.visits : side == ListedSide::keys && a.tile < b.tile;
                     });
    first = order.size();
    bytes = 0;
  };
  for (const Pair& pair : pairs) {
    if (bytes > 0 && bytes + pair.bytes > sizes.section_bytes) {
      end_section();
    }
    order.insert(order.end(), pair.tiles.begin(), pair.tiles.end());
    bytes += pair.bytes;
  }
  end_section();
  return order;
}

std::vector<std::int32_t> deal_listed_tiles(const std::vector<ListedTile>& tiles, std::int64_t blocks,
                                            double fixed_visits) {
  struct Block {
    double busy_until;
    std::int64_t number;
    bool operator>(const Block& other) const {
      return busy_until != other.busy_until ? busy_until > other.busy_until : number > other.number;
    }
  };
  std::priority_queue<Block, std::vector<Block>, std::greater<>> queue;
  for (std::int64_t block = 0; block < blocks; ++block) {
    queue.push({0.0, block});
  }
  std::vector<std::vector<std::int32_t>> dealt(static_cast<std::size_t>(blocks));
  std::size_t rounds = 0;
  for (const ListedTile& tile : tiles) {
    Block block = queue.top();
    queue.pop();
    auto& list = dealt[static_cast<std::size_t>(block.number)];
    list.push_back(tile.number);
    rounds = std::max(rounds, list.size());
    block.busy_until += static_cast<double>(tile.visits) + fixed_visits;
    queue.push(block);
  }
  std::vector<std::int32_t> table(rounds * static_cast<std::size_t>(blocks), -1);
  for (std::size_t block = 0; block < dealt.size(); ++block) {
    for (std::size_t round = 0; round < dealt[block].size(); ++round) {
      table[round * dealt.size() + block] = dealt[block][round];
    }
  }
  return table;
}

}  // namespace tessera::internal
