// Any bytes are either refused with an Error that has a message, or a block mask that writes the same bytes again. CSR
// arrays likewise: refused, or rows that hold exactly what was given.
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "fuzz/bytes.h"
#include "tessera/block_mask.h"
#include "tessera/error.h"

namespace {

using tessera::BlockGrid;
using tessera::BlockMask;
using tessera::fuzz::Bytes;

void require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

template <class Action>
void run_or_refuse(const Action& action) {
  try {
    action();
  } catch (const tessera::Error& error) {
    require(error.code() == tessera::ErrorCode::invalid_argument && !std::string(error.what()).empty(), error.what());
  }
}

void check_bytes(std::span<const std::byte> bytes) {
  const BlockMask mask = BlockMask::from_bytes(bytes);
  const std::vector<std::byte> written = mask.to_bytes();
  require(std::equal(written.begin(), written.end(), bytes.begin(), bytes.end()), "to_bytes");
  require(mask.draw().empty() == (mask.grid().rows() == 0), "draw");
}

void check_csr(Bytes& bytes) {
  const BlockGrid grid{bytes.between(0, 100), bytes.between(0, 100), bytes.between(0, 3) * 16, 16};
  std::vector<std::int64_t> offsets;
  for (std::int64_t n = bytes.between(0, 8); n > 0; --n) offsets.push_back(bytes.between(-1, 12));
  std::vector<std::int64_t> columns;
  for (std::int64_t n = bytes.between(0, 12); n > 0; --n) columns.push_back(bytes.between(-1, 8));
  const BlockMask mask = BlockMask::from_csr(grid, offsets, columns);
  std::size_t n = 0;
  for (std::int64_t row = 0; row < grid.rows(); ++row) {
    for (const tessera::TileVisit& block : mask.row(0, row)) {
      require(block.index == columns[n++], "row");
    }
    require(n == static_cast<std::size_t>(offsets[static_cast<std::size_t>(row) + 1]), "offsets");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run_or_refuse([&] { check_bytes(std::as_bytes(std::span(data, size))); });
  run_or_refuse([&] {
    Bytes bytes(data, size);
    check_csr(bytes);
  });
  return 0;
}
