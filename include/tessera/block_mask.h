// Block-sparse attention: which blocks of (query, key) pairs are kept (Dao et al. 2022, Section 3.3 and Algorithm 5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tessera/tile.h"

namespace tessera {

namespace internal {
struct BlockData;
}

// How queries x keys are cut into blocks. The last block of a row or column is cut short where the lengths are no
// multiples. Block sizes are multiples of 16, up to 8192, and independent of any kernel's tiles.
struct BlockGrid {
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  std::int64_t block_q = 128;
  std::int64_t block_k = 128;

  std::int64_t rows() const { return (queries + block_q - 1) / block_q; }
  std::int64_t columns() const { return (keys + block_k - 1) / block_k; }
  bool operator==(const BlockGrid&) const = default;
};

// Rows of kept blocks, in compressed form: one pattern for all, or one for each head, each sequence of the batch, or
// both. A kept block is full, or partial with one bit for each of its pairs. Immutable; copies share their memory, which
// is linear in the numbers of block rows and kept blocks (and in the pairs of partial ones). The transpose is computed
// once, when column() first asks for it, and takes memory for every block column.
class BlockMask {
 public:
  // Every block kept for which keep(block row, block column) holds; it is asked about each. Throws Error for more than 2^32.
  static BlockMask from_function(const BlockGrid& grid, const std::function<bool(std::int64_t, std::int64_t)>& keep);
  // Row r keeps the blocks columns[offsets[r]] .. columns[offsets[r + 1] - 1], which must increase. Throws Error that
  // names the row which is not sorted, repeats a column or leaves the grid.
  static BlockMask from_csr(const BlockGrid& grid, std::span<const std::int64_t> offsets,
                            std::span<const std::int64_t> columns);
  // From one boolean for each pair, row-major [queries, keys], 0 or not: blocks without a pair are dropped, blocks with
  // all of them are full, the others are partial.
  static BlockMask from_dense(const BlockGrid& grid, std::span<const std::uint8_t> attends);

  // One mask for each head, or for each sequence of the batch, with equal grids. The parts of over_batch may have heads.
  static BlockMask over_heads(std::span<const BlockMask> heads);
  static BlockMask over_batch(std::span<const BlockMask> sequences);

  // The pairs that both, or either, attend to. Grids must be equal; batch and heads are equal or 1.
  BlockMask operator&(const BlockMask& other) const;
  BlockMask operator|(const BlockMask& other) const;

  const BlockGrid& grid() const;
  std::int64_t batch() const;  // 1: shared by the sequences
  std::int64_t heads() const;  // 1: shared by the heads

  // Which pattern serves a (sequence, head); patterns are numbered from 0, heads fastest.
  std::int64_t pattern_of(std::int64_t batch_index, std::int64_t head) const;
  std::int64_t patterns() const { return batch() * heads(); }
  // Kept blocks of one block row, and of one block column, in ascending order. TileVisit::index is the other coordinate.
  std::span<const TileVisit> row(std::int64_t pattern, std::int64_t block_row) const;
  std::span<const TileVisit> column(std::int64_t pattern, std::int64_t block_column) const;
  bool attends(std::int64_t pattern, std::int64_t query, std::int64_t key) const;
  // The first run of consecutive keys in `within` to which the query attends; empty when there is none.
  Range next_keys(std::int64_t pattern, std::int64_t query, Range within) const;

  std::int64_t kept_blocks() const;  // of all patterns
  double density() const;            // kept_blocks() over all blocks; 0 without blocks

  // One character a block, '#' full, '+' partial, '.' dropped; larger grids than `most` are drawn at a coarser scale.
  std::string draw(std::int64_t pattern = 0, std::int64_t most = 64) const;
  // "blocks 128x128, 12.5 % of 32 x 32 kept, 16 heads"
  std::string describe() const;
  bool operator==(const BlockMask& other) const;

  // A self-contained form, the same on every machine. from_bytes() validates what it reads and throws Error.
  std::vector<std::byte> to_bytes() const;
  static BlockMask from_bytes(std::span<const std::byte> bytes);

 private:
  friend struct internal::BlockData;
  explicit BlockMask(std::shared_ptr<const internal::BlockData> data) : data_(std::move(data)) {}

  std::shared_ptr<const internal::BlockData> data_;
};

// Patterns of published sparse attentions, on blocks. Distances are counted in blocks; a block row of a grid that is not
// square stands at the block column with the same share of the length. None is causal by itself: combine with
// Mask::causal().
namespace block_patterns {

// Block row i keeps i itself and every i XOR 2^n, up to a distance of max_distance (0: no limit): log2(rows) + 1 blocks.
// (Chen et al. 2021, Pixelated Butterfly, Section 3: the flat block butterfly, which the FlashAttention paper uses.)
BlockMask butterfly(const BlockGrid& grid, std::int64_t max_distance = 0);
// Blocks at most `distance` from the diagonal.
BlockMask local(const BlockGrid& grid, std::int64_t distance);
// Blocks less than `stride` from the diagonal, and those whose distance is a multiple of it.
// (Child et al. 2019, Sparse Transformers, Section 4.3.)
BlockMask strided(const BlockGrid& grid, std::int64_t stride);
// Groups of `stride` blocks: a row keeps its own group and the last `summary` blocks of every group.
// (Child et al. 2019, Section 4.3.)
BlockMask fixed(const BlockGrid& grid, std::int64_t stride, std::int64_t summary = 1);
// Blocks at most `window` from the diagonal, and the rows and columns of the first `global` blocks.
// (Beltagy et al. 2020, Longformer, Section 3.1.)
BlockMask sliding_window_global(const BlockGrid& grid, std::int64_t window, std::int64_t global = 1);
// sliding_window_global(grid, window, global) and `random` more blocks in each row, drawn without repetition.
// (Zaheer et al. 2020, Big Bird, Section 2.)
BlockMask bigbird(const BlockGrid& grid, std::int64_t window, std::int64_t global, std::int64_t random,
                  std::uint64_t seed);
// round(density * blocks) blocks, drawn without repetition from the whole grid; density in [0, 1].
BlockMask random(const BlockGrid& grid, double density, std::uint64_t seed);
// Blocks with any pair on or below the diagonal that ends at the last query and the last key.
BlockMask lower_triangular(const BlockGrid& grid);

}  // namespace block_patterns

}  // namespace tessera
