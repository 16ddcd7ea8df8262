// A mask function as a block mask: evaluated for every pair, row by row, by code that the compiler has vectorised.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "core/fail.h"
#include "function/native.h"
#include "mask/block_data.h"
#include "tessera/problem.h"

namespace tessera {

namespace {

using internal::BlockBits;
using internal::BlockData;
using internal::BlockPattern;
using internal::BlockPatternBuilder;

// One bit for each of `count` bytes that are 0 or 1.
void pack_bits(const unsigned char* bytes, std::int64_t count, std::uint64_t* words) {
  constexpr std::uint64_t kGather = 0x0102040810204080;  // byte k of a word to bit 56 + k
  for (std::int64_t j = 0; j < count; j += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, bytes + j, static_cast<std::size_t>(std::min<std::int64_t>(8, count - j)));
    words[j / 64] |= ((eight * kGather) >> 56) << (j % 64);
  }
}

// The function for one sequence and head, or for all that it does not tell apart.
class Evaluation {
 public:
  Evaluation(const Problem& problem, const BlockGrid& grid, const internal::NativeMask& native, std::int64_t batch,
             std::int64_t head)
      : positions_(problem.function_positions),
        batch_(batch),
        head_(head),
        params_(problem.mask_function->params().data()),
        native_(native),
        grid_(grid),
        queries_(grid.queries),
        keys_(grid.keys) {
    if (problem.mask_function->depends_on_batch()) {  // positions beyond this sequence are none of its own
      const SequenceSpan span = problem.sequence(batch);
      queries_ = span.queries;
      keys_ = span.keys;
    }
    // Where one band serves all sequences, blocks behind it need not be evaluated.
    const Mask& mask = problem.mask;
    if (mask.has_band() && !problem.ragged() && problem.key_lengths.empty() && !problem.lengths_in_tensors) {
      band_.emplace(Mask::window(mask.left(), mask.right(), mask.alignment()), MaskSequence{grid.queries, grid.keys},
                    grid.block_q, grid.block_k);
    }
  }

  bool skips(std::int64_t block_row, std::int64_t block_column) const {
    return band_ && !band_->visit(block_row, block_column);
  }

  void fill(std::int64_t block_row, std::int64_t block_column, std::vector<unsigned char>& row_bytes,
            BlockBits& bits) const {
    const std::int64_t first_query = block_row * grid_.block_q;
    const std::int64_t first_key = block_column * grid_.block_k;
    const std::int64_t rows = std::min(grid_.block_q, queries_ - first_query);
    const std::int64_t columns = std::min(grid_.block_k, keys_ - first_key);
    bits.clear();
    if (columns <= 0) {
      return;
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      native_.row(internal::function_row(positions_, batch_, head_, first_query + r, first_key, columns), params_,
                  row_bytes.data());
      pack_bits(row_bytes.data(), columns, bits.words().data() + r * internal::words_per_row(grid_));
    }
  }

 private:
  const Positions& positions_;
  std::int64_t batch_;
  std::int64_t head_;
  const float* params_;
  const internal::NativeMask& native_;
  const BlockGrid& grid_;
  std::int64_t queries_;
  std::int64_t keys_;
  std::optional<TileSchedule> band_;
};

// Calls body(item) for each item, from several threads; the first exception is thrown again here.
template <class Body>
void for_each_item(std::int64_t items, int threads, const Body& body) {
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (std::int64_t item = next++; item < items; item = next++) {
        body(item);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (std::int64_t n = 1; n < std::min<std::int64_t>(threads, items); ++n) {
    others.emplace_back(work);
  }
  work();
  for (std::thread& other : others) {
    other.join();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

// The kept blocks of one row of blocks; without bits where they are full.
struct BlockRow {
  std::vector<std::int64_t> columns;
  std::vector<std::optional<BlockBits>> bits;
};

BlockPattern evaluate(const Evaluation& evaluation, const BlockGrid& grid, int threads) {
  std::vector<BlockRow> rows(static_cast<std::size_t>(grid.rows()));
  constexpr std::int64_t kPairsPerThread = std::int64_t{1} << 20;  // below, a thread costs more than it saves
  const std::int64_t worthwhile = std::max<std::int64_t>(1, grid.queries * grid.keys / kPairsPerThread);
  for_each_item(grid.rows(), static_cast<int>(std::min<std::int64_t>(threads, worthwhile)), [&](std::int64_t r) {
    std::vector<unsigned char> bytes(static_cast<std::size_t>(grid.block_k));
    BlockBits bits(grid);
    BlockRow& row = rows[static_cast<std::size_t>(r)];
    for (std::int64_t c = 0; c < grid.columns(); ++c) {
      if (evaluation.skips(r, c)) {
        continue;
      }
      evaluation.fill(r, c, bytes, bits);
      const std::int64_t pairs = bits.count();
      if (pairs > 0) {
        row.columns.push_back(c);
        const bool full = pairs == internal::pairs_of_block(grid, r, c);
        row.bits.push_back(full ? std::nullopt : std::optional(bits));
      }
    }
  });
  BlockPatternBuilder builder(grid);
  for (BlockRow& row : rows) {
    for (std::size_t n = 0; n < row.columns.size(); ++n) {
      row.bits[n] ? builder.add(row.columns[n], *row.bits[n]) : builder.add_full(row.columns[n]);
    }
    builder.end_row();
    row = {};
  }
  return builder.finish();
}

}  // namespace

Problem lower_mask_function(const Problem& problem, int threads) {
  if (!problem.mask_function) {
    return problem;
  }
  const MaskFunction& function = *problem.mask_function;
  const internal::NativeMask native = internal::native_mask(function);
  BlockGrid grid;
  if (problem.mask.has_blocks()) {
    grid = problem.mask.block_mask().grid();
  } else {
    grid.queries = problem.seq_q;
    grid.keys = problem.seq_k;
  }
  internal::validate(grid);
  if (threads <= 0) {
    threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  }
  BlockData data{
      grid, function.depends_on_batch() ? problem.batch : 1, function.depends_on_head() ? problem.heads_q : 1, {}};
  for (std::int64_t batch = 0; batch < data.batch; ++batch) {
    for (std::int64_t head = 0; head < data.heads; ++head) {
      data.patterns.push_back(evaluate(Evaluation(problem, grid, native, batch, head), grid, threads));
    }
  }
  Problem lowered = problem;
  lowered.mask_function.reset();
  if (problem.batch > 0) {
    lowered.mask = problem.mask & Mask::blocks(BlockData::make(std::move(data)));
  }
  return lowered;
}

}  // namespace tessera
