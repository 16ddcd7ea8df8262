#include <bit>
#include <cmath>
#include <random>

#include "core/fail.h"
#include "mask/block_data.h"
#include "tessera/block_mask.h"

namespace tessera::block_patterns {

namespace {

void require_at_least(std::string_view name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    internal::fail_argument(name, value, std::to_string(least) + " or more");
  }
}

// The block column at which a block row stands.
std::int64_t place(const BlockGrid& grid, std::int64_t row) {
  return grid.rows() == grid.columns() ? row : row * grid.columns() / grid.rows();
}

template <class Keep>
BlockMask by_place(const BlockGrid& grid, const Keep& keep) {
  return BlockMask::from_function(
      grid, [&](std::int64_t row, std::int64_t column) { return keep(place(grid, row), column); });
}

// A number in [0, bound): the same on every machine, which std::uniform_int_distribution is not.
std::uint64_t draw_below(std::mt19937_64& engine, std::uint64_t bound) {
  const std::uint64_t limit = engine.max() - engine.max() % bound;
  std::uint64_t value = engine();
  while (value >= limit) {
    value = engine();
  }
  return value % bound;
}

// Chooses `wanted` of `all` places, each set equally likely, as it goes through them in order.
// (Knuth, The Art of Computer Programming, Volume 2, Section 3.4.2, Algorithm S.)
class Selection {
 public:
  Selection(std::int64_t wanted, std::int64_t all, std::mt19937_64& engine)
      : wanted_(wanted), left_(all), engine_(&engine) {}
  bool next() {
    const bool chosen = static_cast<std::int64_t>(draw_below(*engine_, static_cast<std::uint64_t>(left_))) < wanted_;
    --left_;
    wanted_ -= chosen ? 1 : 0;
    return chosen;
  }

 private:
  std::int64_t wanted_;
  std::int64_t left_;
  std::mt19937_64* engine_;
};

}  // namespace

BlockMask butterfly(const BlockGrid& grid, std::int64_t max_distance) {
  require_at_least("max_distance", max_distance, 0);
  return by_place(grid, [&](std::int64_t i, std::int64_t j) {
    const auto distance = static_cast<std::uint64_t>(i ^ j);
    const bool near = max_distance == 0 || static_cast<std::int64_t>(distance) <= max_distance;
    return i == j || (std::has_single_bit(distance) && near);
  });
}

BlockMask local(const BlockGrid& grid, std::int64_t distance) {
  require_at_least("distance", distance, 0);
  return by_place(grid, [&](std::int64_t i, std::int64_t j) { return std::abs(i - j) <= distance; });
}

BlockMask strided(const BlockGrid& grid, std::int64_t stride) {
  require_at_least("stride", stride, 1);
  return by_place(grid,
                  [&](std::int64_t i, std::int64_t j) { return std::abs(i - j) < stride || (i - j) % stride == 0; });
}

BlockMask fixed(const BlockGrid& grid, std::int64_t stride, std::int64_t summary) {
  require_at_least("stride", stride, 1);
  require_at_least("summary", summary, 0);
  return by_place(
      grid, [&](std::int64_t i, std::int64_t j) { return i / stride == j / stride || j % stride >= stride - summary; });
}

BlockMask sliding_window_global(const BlockGrid& grid, std::int64_t window, std::int64_t global) {
  require_at_least("window", window, 0);
  require_at_least("global", global, 0);
  return BlockMask::from_function(grid, [&](std::int64_t row, std::int64_t column) {
    return row < global || column < global || std::abs(place(grid, row) - column) <= window;
  });
}

BlockMask bigbird(const BlockGrid& grid, std::int64_t window, std::int64_t global, std::int64_t random,
                  std::uint64_t seed) {
  require_at_least("random", random, 0);
  const BlockMask regular = sliding_window_global(grid, window, global);
  std::mt19937_64 engine(seed);
  std::int64_t others = 0;
  Selection selection(0, 0, engine);
  const BlockMask drawn = BlockMask::from_function(grid, [&](std::int64_t row, std::int64_t column) {
    if (column == 0) {
      others = grid.columns() - static_cast<std::int64_t>(regular.row(0, row).size());
      selection = Selection(std::min(random, others), others, engine);
    }
    const auto kept = regular.row(0, row);
    const bool taken = std::any_of(kept.begin(), kept.end(), [&](const TileVisit& b) { return b.index == column; });
    return !taken && selection.next();
  });
  return regular | drawn;
}

BlockMask random(const BlockGrid& grid, double density, std::uint64_t seed) {
  if (!(density >= 0.0 && density <= 1.0)) {
    internal::fail_argument("density", density, "0 to 1");
  }
  internal::validate(grid);
  const std::int64_t blocks = grid.rows() * grid.columns();
  std::mt19937_64 engine(seed);
  Selection selection(std::llround(density * static_cast<double>(blocks)), blocks, engine);
  return BlockMask::from_function(grid,
                                  [&](std::int64_t /*row*/, std::int64_t /*column*/) { return selection.next(); });
}

BlockMask lower_triangular(const BlockGrid& grid) {
  return BlockMask::from_function(grid, [&](std::int64_t row, std::int64_t column) {
    const std::int64_t last_query = std::min((row + 1) * grid.block_q, grid.queries) - 1;
    return column * grid.block_k <= last_query + grid.keys - grid.queries;
  });
}

}  // namespace tessera::block_patterns
