#include "mask/schedule_lists.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "core/fail.h"

namespace tessera::internal {

namespace {

constexpr std::int64_t kWordBits = 32;

// The bit masks of tiles of one size, each different one once.
class MaskPool {
 public:
  MaskPool(std::int64_t tile_q, std::int64_t tile_k)
      : tile_q_(tile_q), tile_k_(tile_k), words_(tile_q * tile_k / kWordBits) {}

  // The number of the mask of one tile.
  std::int32_t add(const TileSchedule& schedule, std::int64_t query_tile, std::int64_t key_tile) {
    const std::size_t first = bits_.size();
    bits_.resize(first + static_cast<std::size_t>(words_));
    const Range keys{key_tile * tile_k_, std::min((key_tile + 1) * tile_k_, schedule.keys())};
    const std::int64_t first_query = query_tile * tile_q_;
    const std::int64_t end = std::min(first_query + tile_q_, schedule.queries());
    std::uint32_t* row = bits_.data() + first;
    for (std::int64_t query = first_query; query < end; ++query, row += tile_k_ / kWordBits) {
      for (Range run = schedule.next_keys(query, keys); !run.empty();
           run = schedule.next_keys(query, {run.end, keys.end})) {
        set({run.begin - keys.begin, run.end - keys.begin}, row);
      }
    }
    return keep_last(first);
  }

  std::vector<std::uint32_t> take(BitOrder order) {
    return order == BitOrder::by_query ? std::move(bits_) : transposed();
  }

 private:
  static void set(Range columns, std::uint32_t* row) {
    constexpr std::uint32_t kOnes = ~std::uint32_t{0};
    const std::int64_t first = columns.begin / kWordBits;
    const std::int64_t last = (columns.end - 1) / kWordBits;
    const std::uint32_t head = kOnes << (columns.begin % kWordBits);
    const std::uint32_t tail = kOnes >> (kWordBits - 1 - (columns.end - 1) % kWordBits);
    if (first == last) {
      row[first] |= head & tail;
      return;
    }
    row[first] |= head;
    std::fill(row + first + 1, row + last, kOnes);
    row[last] |= tail;
  }

  // The number of the mask that starts at word `first`, the last one; it is dropped if there was an equal one.
  std::int32_t keep_last(std::size_t first) {
    const auto words = static_cast<std::size_t>(words_);
    std::uint64_t hash = 0;
    for (std::size_t n = 0; n < words; ++n) {
      hash = (hash ^ bits_[first + n]) * 0x9E3779B97F4A7C15U;
      hash ^= hash >> 29;
    }
    const auto last = bits_.begin() + static_cast<std::ptrdiff_t>(first);
    for (auto [it, end] = known_.equal_range(hash); it != end; ++it) {
      if (std::equal(last, bits_.end(), bits_.begin() + static_cast<std::ptrdiff_t>(it->second) * words_)) {
        bits_.resize(first);
        return it->second;
      }
    }
    const auto number = static_cast<std::int32_t>(first / words);
    known_.emplace(hash, number);
    return number;
  }

  std::vector<std::uint32_t> transposed() const {
    std::vector<std::uint32_t> result(bits_.size(), 0);
    const std::int64_t words_of_query = tile_k_ / kWordBits;
    const std::int64_t words_of_key = tile_q_ / kWordBits;
    for (std::size_t n = 0; n < bits_.size(); ++n) {
      const auto index = static_cast<std::int64_t>(n);
      const std::int64_t mask = index / words_;
      const std::int64_t query = index % words_ / words_of_query;
      const std::int64_t first_key = index % words_of_query * kWordBits;
      for (std::uint32_t rest = bits_[n]; rest != 0; rest &= rest - 1) {
        const std::int64_t key = first_key + std::countr_zero(rest);
        result[static_cast<std::size_t>(mask * words_ + key * words_of_key + query / kWordBits)] |=
            std::uint32_t{1} << (query % kWordBits);
      }
    }
    return result;
  }

  std::int64_t tile_q_, tile_k_, words_;
  std::vector<std::uint32_t> bits_;
  std::unordered_multimap<std::uint64_t, std::int32_t> known_;  // by hash
};

std::int32_t narrow(std::size_t visits) {
  if (visits > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    fail_argument("mask", std::to_string(visits) + " tiles to visit", "up to 2^31 - 1");
  }
  return static_cast<std::int32_t>(visits);
}

// The rows of one pattern, and empty ones up to those of the longest sequence.
void append_rows(ScheduleLists& lists, const TileSchedule& schedule, MaskPool& masks) {
  for (std::int64_t row = 0; row < lists.row_tiles; ++row) {
    if (row < schedule.query_tiles()) {
      for (auto visit = schedule.next_in_row(row, 0); visit; visit = schedule.next_in_row(row, visit->index + 1)) {
        const bool ends_inside = (visit->index + 1) * schedule.tile_k() > schedule.keys();
        const bool full = visit->kind == TileKind::full && !ends_inside;
        lists.rows.visits.push_back({static_cast<std::int32_t>(visit->index),
                                     full ? ScheduleLists::kAllAttend : masks.add(schedule, row, visit->index)});
        lists.partial_visits += full ? 0 : 1;
      }
    }
    lists.rows.begin.push_back(narrow(lists.rows.visits.size()));
  }
}

ScheduleLists::Side transpose(const ScheduleLists& lists, std::int64_t patterns) {
  const ScheduleLists::Side& rows = lists.rows;
  ScheduleLists::Side columns;
  columns.begin.assign(static_cast<std::size_t>(patterns * lists.column_tiles) + 1, 0);
  columns.visits.resize(rows.visits.size());
  const auto each = [&](auto&& use) {
    for (std::size_t row = 0; row + 1 < rows.begin.size(); ++row) {
      const std::size_t pattern = row / static_cast<std::size_t>(lists.row_tiles);
      for (std::int32_t n = rows.begin[row]; n < rows.begin[row + 1]; ++n) {
        const ScheduleLists::Visit& visit = rows.visits[static_cast<std::size_t>(n)];
        use(pattern * static_cast<std::size_t>(lists.column_tiles) + static_cast<std::size_t>(visit.tile),
            ScheduleLists::Visit{static_cast<std::int32_t>(row % static_cast<std::size_t>(lists.row_tiles)),
                                 visit.bits});
      }
    }
  };
  each([&](std::size_t column, const ScheduleLists::Visit&) { ++columns.begin[column + 1]; });
  std::partial_sum(columns.begin.begin(), columns.begin.end(), columns.begin.begin());
  std::vector<std::int32_t> next(columns.begin.begin(), columns.begin.end() - 1);
  each([&](std::size_t column, const ScheduleLists::Visit& visit) {
    columns.visits[static_cast<std::size_t>(next[column]++)] = visit;
  });
  return columns;
}

}  // namespace

ScheduleLists list_schedules(const Problem& problem, std::int64_t tile_q, std::int64_t tile_k, BitOrder order) {
  const std::int64_t sequences =
      problem.sequences_are_alike() ? std::min<std::int64_t>(problem.batch, 1) : problem.batch;
  const std::int64_t heads = problem.schedules_per_sequence();
  ScheduleLists lists;
  lists.row_tiles = narrow(static_cast<std::size_t>(ceil_div(problem.seq_q, tile_q)));
  lists.column_tiles = narrow(static_cast<std::size_t>(ceil_div(problem.seq_k, tile_k)));
  lists.sequence_step = sequences == problem.batch && sequences > 1 ? static_cast<std::int32_t>(heads) : 0;
  lists.head_step = heads > 1 ? 1 : 0;
  narrow(
      static_cast<std::size_t>(checked_mul(sequences * heads, std::max(lists.row_tiles, lists.column_tiles), "tiles")));
  MaskPool masks(tile_q, tile_k);
  for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (std::int64_t head = 0; head < heads; ++head) {
      append_rows(lists, problem.schedule(sequence, tile_q, tile_k, head), masks);
    }
  }
  lists.columns = transpose(lists, sequences * heads);
  lists.bits = masks.take(order);
  return lists;
}

}  // namespace tessera::internal
