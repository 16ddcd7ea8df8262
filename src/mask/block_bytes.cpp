// The serialised form of a BlockMask: an 8-byte name, then little-endian 64-bit numbers: the grid, batch and heads; for
// each pattern its row offsets, then for each kept block its column, shifted left by one, and 1 if it is partial, then
// the words of the partial ones.
#include <algorithm>
#include <array>
#include <bit>

#include "core/fail.h"
#include "mask/block_data.h"

namespace tessera {

using internal::BlockBits;
using internal::BlockData;
using internal::BlockPattern;
using internal::BlockPatternBuilder;

namespace {

constexpr std::array<char, 8> kName{'T', 'S', 'R', 'B', 'L', 'K', '0', '1'};

[[noreturn]] void fail_bytes(const std::string& what, const std::string& accepted) {
  internal::fail_argument("bytes of a block mask", what, accepted);
}

class Writer {
 public:
  void number(std::uint64_t value) {
    for (int shift = 0; shift < 64; shift += 8) {
      bytes_.push_back(static_cast<std::byte>(value >> shift));
    }
  }
  void name() {
    for (const char letter : kName) {
      bytes_.push_back(static_cast<std::byte>(letter));
    }
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  void name() {
    if (bytes_.size() < kName.size() ||
        !std::equal(kName.begin(), kName.end(), bytes_.begin(),
                    [](char a, std::byte b) { return static_cast<std::byte>(a) == b; })) {
      fail_bytes("another kind of data", "what to_bytes() returned");
    }
    bytes_ = bytes_.subspan(kName.size());
  }
  std::uint64_t number() {
    require(1);
    std::uint64_t value = 0;
    for (std::size_t n = 0; n < 8; ++n) {
      value |= std::to_integer<std::uint64_t>(bytes_[n]) << (8 * n);
    }
    bytes_ = bytes_.subspan(8);
    return value;
  }
  std::int64_t count(const char* what) {
    const std::uint64_t value = number();
    if (value > (std::uint64_t{1} << 62)) {
      fail_bytes(std::string(what) + " " + std::to_string(value), "numbers below 2^62");
    }
    return static_cast<std::int64_t>(value);
  }
  // Before anything is allocated for them.
  void require(std::int64_t numbers) const {
    if (numbers > left()) {
      fail_bytes(std::to_string(left()) + " numbers left", std::to_string(numbers) + " or more");
    }
  }
  std::int64_t left() const { return static_cast<std::int64_t>(bytes_.size() / 8); }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

BlockBits read_bits(Reader& reader, const BlockGrid& grid, std::int64_t row, std::int64_t column) {
  reader.require(internal::words_per_block(grid));
  BlockBits bits(grid);
  for (std::uint64_t& word : bits.words()) {
    word = reader.number();
  }
  BlockBits inside(grid);
  inside.set_all(row, column);
  const bool stays_inside = std::equal(bits.words().begin(), bits.words().end(), inside.words().begin(),
                                       [](std::uint64_t a, std::uint64_t b) { return (a & ~b) == 0; });
  const std::int64_t pairs = bits.count();
  if (!stays_inside || pairs == 0 || pairs == internal::pairs_of_block(grid, row, column)) {
    fail_bytes("bits of block (" + std::to_string(row) + ", " + std::to_string(column) + ")",
               "some, but not all, of the pairs inside the grid");
  }
  return bits;
}

BlockPattern read_pattern(Reader& reader, const BlockGrid& grid) {
  reader.require(grid.rows() + 1);
  std::vector<std::int64_t> offsets;
  for (std::int64_t row = 0; row <= grid.rows(); ++row) {
    offsets.push_back(reader.count("row offset"));
    const std::int64_t least = row == 0 ? 0 : offsets[static_cast<std::size_t>(row) - 1];
    if (offsets.back() < least || (row == 0 && offsets.back() != 0)) {
      fail_bytes("offset " + std::to_string(offsets.back()) + " of block row " + std::to_string(row),
                 "numbers from 0 that do not decrease");
    }
  }
  reader.require(offsets.back());
  std::vector<std::int64_t> kept;
  kept.reserve(static_cast<std::size_t>(offsets.back()));
  for (std::int64_t n = 0; n < offsets.back(); ++n) {
    kept.push_back(reader.count("block"));
  }
  BlockPatternBuilder builder(grid);
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    std::int64_t least = 0;
    for (std::int64_t n = offsets[static_cast<std::size_t>(row)]; n < offsets[static_cast<std::size_t>(row) + 1]; ++n) {
      const std::int64_t column = kept[static_cast<std::size_t>(n)] >> 1;
      if (column < least || column >= grid.columns()) {
        fail_bytes(
            "column " + std::to_string(column) + " of block row " + std::to_string(row),
            "columns that increase, here " + std::to_string(least) + " to " + std::to_string(grid.columns() - 1));
      }
      least = column + 1;
      if ((kept[static_cast<std::size_t>(n)] & 1) != 0) {
        builder.add(column, read_bits(reader, grid, row, column));
      } else {
        builder.add_full(column);
      }
    }
    builder.end_row();
  }
  return builder.finish();
}

}  // namespace

std::vector<std::byte> BlockMask::to_bytes() const {
  Writer writer;
  writer.name();
  const auto write = [&](std::int64_t value) { writer.number(static_cast<std::uint64_t>(value)); };
  for (const std::int64_t value : {grid().queries, grid().keys, grid().block_q, grid().block_k, batch(), heads()}) {
    write(value);
  }
  for (const BlockPattern& pattern : BlockData::of(*this).patterns) {
    std::for_each(pattern.row_offsets.begin(), pattern.row_offsets.end(), write);
    for (const TileVisit& block : pattern.by_row) {
      write(block.index * 2 + (block.kind == TileKind::partial ? 1 : 0));
    }
    std::for_each(pattern.words.begin(), pattern.words.end(), [&](std::uint64_t word) { writer.number(word); });
  }
  return writer.take();
}

BlockMask BlockMask::from_bytes(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  reader.name();
  BlockData data;
  data.grid.queries = reader.count("queries");
  data.grid.keys = reader.count("keys");
  data.grid.block_q = reader.count("block_q");
  data.grid.block_k = reader.count("block_k");
  internal::validate(data.grid);
  data.batch = reader.count("batch");
  data.heads = reader.count("heads");
  if (data.batch < 1 || data.heads < 1 || data.batch > reader.left() || data.heads > reader.left() / data.batch) {
    fail_bytes(std::to_string(data.batch) + " sequences and " + std::to_string(data.heads) + " heads",
               "1 or more of each, and the bytes of all of them");
  }
  for (std::int64_t pattern = 0; pattern < data.batch * data.heads; ++pattern) {
    data.patterns.push_back(read_pattern(reader, data.grid));
  }
  if (!reader.at_end()) {
    fail_bytes("bytes after the last pattern", "none");
  }
  return BlockData::make(std::move(data));
}

}  // namespace tessera
