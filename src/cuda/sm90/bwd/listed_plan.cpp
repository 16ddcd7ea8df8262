#include "cuda/sm90/bwd/listed_plan.h"

#include <algorithm>
#include <functional>
#include <queue>

#include "core/fail.h"

namespace tessera::internal {

namespace {

using sm90::ListedSum;
using sm90::ListedTask;
using sm90::ListedTerm;

class Play {
 public:
  Play(const Problem& problem, const ScheduleLists& lists, const SequenceTable& query_table, std::int64_t line_tiles,
       std::int64_t tile_q)
      : problem_(problem),
        lists_(lists),
        query_table_(query_table),
        line_tiles_(line_tiles),
        tile_q_(tile_q),
        spread_(std::min(1.0, static_cast<double>(kSpreadBytes) / static_cast<double>(head_bytes(problem)))),
        free_at_(static_cast<std::size_t>(line_tiles * problem.heads_q * (alike() ? problem.batch : 1)), 0.0F),
        turns_(free_at_.size(), 0) {}

  ListedPlay run(const std::vector<ListedTile>& tiles, std::int64_t blocks) {
    blocks_.resize(static_cast<std::size_t>(blocks));
    std::priority_queue<Moment, std::vector<Moment>, std::greater<>> moments;
    for (std::int64_t block = 0; block < blocks; ++block) {
      moments.push({0.0F, static_cast<std::int32_t>(block)});
    }
    std::size_t taken = 0;
    while (!moments.empty()) {
      Moment moment = moments.top();
      moments.pop();
      Block& block = blocks_[static_cast<std::size_t>(moment.block)];
      if (block.next < block.terms.size()) {
        moment.time = step(block, moment.time);
      } else if (taken < tiles.size()) {
        finish_task(block);
        take(block, tiles[taken++]);
        moment.time += kFixedSteps;
      } else {
        finish_task(block);
        continue;
      }
      moments.push(moment);
    }
    return gather();
  }

 private:
  static constexpr float kFixedSteps = 3.0F;  // a tile's keys and gradients take as long as so many visits
  static constexpr float kPassedOn = 1.5F;    // steps until a tile of queries can have its next term without a wait
  static constexpr std::size_t kChoice = 8;   // visits to choose from; more make orders worse for the L2 cache

  // Of Q, dO and dQ in float32 between the blocks that work on a head: what stays in the L2 cache.
  static constexpr std::int64_t kSpreadBytes = std::int64_t{24} << 20;

  static std::int64_t head_bytes(const Problem& problem) {
    return std::max<std::int64_t>(1, problem.group_size() * problem.seq_q * (problem.dim_qk + problem.dim_v) * 4);
  }

  struct Moment {
    float time;
    std::int32_t block;
    bool operator>(const Moment& other) const { return time != other.time ? time > other.time : block > other.block; }
  };

  struct Term {
    ListedTerm term;
    std::size_t query_tile;  // of all heads and sequences
  };

  struct Block {
    std::vector<Term> terms;  // of the task at hand
    std::size_t next = 0;
    std::int32_t number = -1;
    std::vector<ListedTask> tasks;  // done; ranges count in `done`
    std::vector<ListedTerm> done;
  };

  bool alike() const { return query_table_.entries.empty(); }

  void take(Block& block, const ListedTile& tile) {
    block.terms.clear();
    block.next = 0;
    block.number = tile.number;
    const std::int64_t group = problem_.group_size();
    for (std::int64_t member = 0; member < group; ++member) {
      const std::int64_t head = tile.head * group + member;
      const std::int64_t first = first_query_tile(tile.sequence, head);
      for (const ScheduleLists::Visit& visit : lists_.columns[lists_.column_of(tile.sequence, head, tile.tile)]) {
        block.terms.push_back({{visit.tile, visit.bits, 0, static_cast<std::int32_t>(member)},
                               static_cast<std::size_t>(first + visit.tile)});
      }
    }
    if (!block.terms.empty()) {  // neighbours start at different tiles of queries
      const double share = static_cast<double>(static_cast<std::uint64_t>(tile.tile) * 0x9E3779B9U % 4096) / 4096;
      const auto start = static_cast<std::size_t>(share * spread_ * static_cast<double>(block.terms.size()));
      std::rotate(block.terms.begin(), block.terms.begin() + static_cast<std::ptrdiff_t>(start), block.terms.end());
    }
  }

  // The next visit of a block; returns when it is over.
  float step(Block& block, float time) {
    const std::size_t end = std::min(block.next + kChoice, block.terms.size());
    std::size_t best = block.next;
    for (std::size_t n = block.next; n < end; ++n) {
      if (free_at_[block.terms[n].query_tile] < free_at_[block.terms[best].query_tile]) {
        best = n;
      }
      if (free_at_[block.terms[best].query_tile] <= time) {
        break;
      }
    }
    const auto begin = block.terms.begin();
    std::rotate(begin + static_cast<std::ptrdiff_t>(block.next), begin + static_cast<std::ptrdiff_t>(best),
                begin + static_cast<std::ptrdiff_t>(best) + 1);
    Term& term = block.terms[block.next++];
    float& free_at = free_at_[term.query_tile];
    term.term.turn = turns_[term.query_tile]++;
    const float start = std::max(time, free_at);
    free_at = start + kPassedOn;
    return start + 1.0F;
  }

  static void finish_task(Block& block) {
    if (block.number < 0) {
      return;
    }
    const auto begin = static_cast<std::int32_t>(block.done.size());
    for (const Term& term : block.terms) {
      block.done.push_back(term.term);
    }
    block.tasks.push_back({block.number, begin, static_cast<std::int32_t>(block.done.size())});
    block.number = -1;
  }

  ListedPlay gather() const {
    std::size_t rounds = 0;
    std::size_t terms = 0;
    for (const Block& block : blocks_) {
      rounds = std::max(rounds, block.tasks.size());
      terms += block.done.size();
    }
    if (terms > std::size_t{1} << 30) {
      fail_argument("mask", std::to_string(terms) + " tiles to visit", "up to 2^30");
    }
    ListedPlay play;
    play.tasks.assign(rounds * blocks_.size(), {-1, 0, 0});
    play.terms.reserve(terms);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const auto first = static_cast<std::int32_t>(play.terms.size());
      play.terms.insert(play.terms.end(), blocks_[b].done.begin(), blocks_[b].done.end());
      for (std::size_t round = 0; round < blocks_[b].tasks.size(); ++round) {
        ListedTask& task = play.tasks[round * blocks_.size() + b];
        task = blocks_[b].tasks[round];
        task.begin += first;
        task.end += first;
      }
    }
    play.sums = sums();
    return play;
  }

  std::vector<ListedSum> sums() const {
    std::vector<ListedSum> sums;
    const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    for (std::int64_t sequence = 0; sequence < problem_.batch; ++sequence) {
      const std::int64_t queries = problem_.sequence(sequence).queries;
      const std::int64_t first_token =
          problem_.ragged() ? query_table_.entries[static_cast<std::size_t>(sequence)].query_row : 0;
      for (std::int64_t head = 0; head < problem_.heads_q; ++head) {
        const std::int64_t first = first_query_tile(sequence, head);
        for (std::int64_t query = 0; query < queries; query += tile_q_) {
          const std::int64_t tile = first + query / tile_q_;
          sums.push_back({narrow(tile), turns_[static_cast<std::size_t>(tile)],
                          problem_.ragged() ? 0 : narrow(sequence), narrow(head), narrow(first_token + query),
                          narrow(std::min(queries - query, tile_q_))});
        }
      }
    }
    std::stable_sort(sums.begin(), sums.end(), [this](const ListedSum& a, const ListedSum& b) {
      return free_at_[static_cast<std::size_t>(a.tile)] < free_at_[static_cast<std::size_t>(b.tile)];
    });
    return sums;
  }

  // Of a line of statistics, among the tiles of queries of all.
  std::int64_t first_query_tile(std::int64_t sequence, std::int64_t head) const {
    return alike() ? (sequence * problem_.heads_q + head) * line_tiles_
                   : head * line_tiles_ + query_table_.entries[static_cast<std::size_t>(sequence)].first_line / tile_q_;
  }

  const Problem& problem_;
  const ScheduleLists& lists_;
  const SequenceTable& query_table_;
  const std::int64_t line_tiles_, tile_q_;
  const double spread_;              // of the starts, as a share of a list
  std::vector<float> free_at_;       // of each tile of queries
  std::vector<std::int32_t> turns_;  // so far
  std::vector<Block> blocks_;
};

}  // namespace

ListedPlay play_listed_backward(const Problem& problem, const ScheduleLists& lists,
                                const std::vector<ListedTile>& tiles, const SequenceTable& query_table,
                                std::int64_t line_tiles, std::int64_t tile_q, std::int64_t blocks) {
  return Play(problem, lists, query_table, line_tiles, tile_q).run(tiles, blocks);
}

}  // namespace tessera::internal
