#include "bool_mask.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>

namespace nb = nanobind;

namespace tessera::python {

namespace {

struct BoolView {
  const std::uint8_t* data = nullptr;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};  // 0 where the extent is 1

  const std::uint8_t* row(std::int64_t batch, std::int64_t head, std::int64_t query) const {
    return data + batch * strides[0] + head * strides[1] + query * strides[2];
  }
};

std::string shape_text(const Array& mask) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < mask.ndim(); ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(mask.shape(axis));
  }
  return text + "]";
}

[[noreturn]] void refuse(const std::string& value, const std::string& accepted) {
  throw Error(ErrorCode::invalid_argument, "mask: " + value + "; accepted: " + accepted);
}

bool broadcasts_to(const Array& mask, const std::array<std::int64_t, 4>& whole) {
  if (mask.ndim() != whole.size()) {
    return false;
  }
  for (std::size_t axis = 0; axis < whole.size(); ++axis) {
    const auto extent = static_cast<std::int64_t>(mask.shape(axis));
    if (extent != 1 && extent != whole[axis]) {
      return false;
    }
  }
  return true;
}

BoolView bool_view(const Array& mask, const std::array<std::int64_t, 4>& whole) {
  if (mask.dtype() != nb::dtype<bool>()) {
    refuse("a tensor that is not boolean", "a boolean tensor or tessera.Mask");
  }
  if (mask.device_type() != nb::device::cpu::value) {
    refuse("a tensor on another device", "a tensor on the CPU");
  }
  if (!broadcasts_to(mask, whole)) {
    refuse("bool" + shape_text(mask), "bool[" + std::to_string(whole[0]) + " or 1, " + std::to_string(whole[1]) +
                                          " or 1, " + std::to_string(whole[2]) + " or 1, " + std::to_string(whole[3]) +
                                          " or 1]");
  }
  BoolView view;
  view.data = static_cast<const std::uint8_t*>(mask.data());
  for (std::size_t axis = 0; axis < 4; ++axis) {
    view.shape[axis] = static_cast<std::int64_t>(mask.shape(axis));
    view.strides[axis] = view.shape[axis] == 1 ? 0 : mask.stride(axis);
  }
  return view;
}

// The keys that one row admits, where they are one range. A row of one element stands for all `seq_k` keys.
std::optional<Range> range_of_row(const std::uint8_t* row, const BoolView& view, std::int64_t seq_k) {
  const std::int64_t stride = view.strides[3];
  if (view.shape[3] == 1) {
    return row[0] != 0 ? Range{0, seq_k} : Range{};
  }
  std::int64_t begin = 0;
  while (begin < seq_k && row[begin * stride] == 0) {
    ++begin;
  }
  std::int64_t end = begin;
  while (end < seq_k && row[end * stride] != 0) {
    ++end;
  }
  for (std::int64_t key = end; key < seq_k; ++key) {
    if (row[key * stride] != 0) {
      return std::nullopt;
    }
  }
  return begin == end ? Range{} : Range{begin, end};
}

// The ranges of every row of every sequence, [batch or 1][seq_q or 1]; nothing where a row has gaps or heads differ.
std::optional<std::vector<std::vector<Range>>> ranges_of(const BoolView& view, std::int64_t seq_k) {
  std::vector<std::vector<Range>> ranges(static_cast<std::size_t>(view.shape[0]));
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t i = 0; i < view.shape[2]; ++i) {
      const auto range = range_of_row(view.row(b, 0, i), view, seq_k);
      for (std::int64_t h = 1; h < view.shape[1]; ++h) {
        if (range_of_row(view.row(b, h, i), view, seq_k) != range) {
          return std::nullopt;
        }
      }
      if (!range) {
        return std::nullopt;
      }
      ranges[static_cast<std::size_t>(b)].push_back(*range);
    }
  }
  return ranges;
}

Range range_of_sequence(const std::vector<Range>& rows) {
  Range whole{std::numeric_limits<std::int64_t>::max(), 0};
  for (const Range& row : rows) {
    if (!row.empty()) {
      whole = {std::min(whole.begin, row.begin), std::max(whole.end, row.end)};
    }
  }
  return whole.empty() ? Range{} : whole;
}

// The keys of query i: `end` and `begin` are offsets of the band's ends from i.
Range clipped(std::int64_t i, const std::optional<std::int64_t>& begin, const std::optional<std::int64_t>& end,
              const Range& keys) {
  const Range range{begin ? std::max(keys.begin, i + *begin) : keys.begin,
                    end ? std::min(keys.end, i + *end) : keys.end};
  return range.empty() ? Range{} : range;
}

// The band that, cut by each sequence's keys, gives these ranges.
std::optional<BandMask> fit(const std::vector<std::vector<Range>>& ranges, std::vector<Range> keys) {
  std::optional<std::int64_t> begin;
  std::optional<std::int64_t> end;
  for (std::size_t b = 0; b < ranges.size(); ++b) {
    for (std::size_t i = 0; i < ranges[b].size(); ++i) {
      const Range& row = ranges[b][i];
      const auto query = static_cast<std::int64_t>(i);
      if (!row.empty() && row.begin > keys[b].begin) {
        begin = row.begin - query;
      }
      if (!row.empty() && row.end < keys[b].end) {
        end = row.end - query;
      }
    }
  }
  for (std::size_t b = 0; b < ranges.size(); ++b) {
    for (std::size_t i = 0; i < ranges[b].size(); ++i) {
      if (clipped(static_cast<std::int64_t>(i), begin, end, keys[b]) != ranges[b][i]) {
        return std::nullopt;
      }
    }
  }
  BandMask band;
  band.keys = std::move(keys);
  // Sides are never negative, so that a band beside the diagonal moves the diagonal.
  if (end) {
    const bool around = begin && *begin <= 0 && *end > 0;
    band.diagonal = around ? 0 : *end - 1;
    band.right = *end - 1 - band.diagonal;
  } else if (begin) {
    band.diagonal = std::max<std::int64_t>(0, *begin);
  }
  if (begin) {
    band.left = band.diagonal - *begin;
  }
  return band;
}

}  // namespace

std::optional<BandMask> band_of(const Array& mask, std::int64_t batch, std::int64_t heads, std::int64_t seq_q,
                                std::int64_t seq_k) {
  const BoolView view = bool_view(mask, {batch, heads, seq_q, seq_k});
  if (view.shape[1] == 0) {
    return std::nullopt;
  }
  const auto ranges = ranges_of(view, seq_k);
  if (!ranges) {
    return std::nullopt;
  }
  std::optional<BandMask> band;
  // One row that stands for many queries says nothing of a band.
  if (view.shape[2] == seq_q) {
    band = fit(*ranges, std::vector<Range>(ranges->size(), Range{0, seq_k}));
  }
  if (!band) {
    std::vector<Range> keys(ranges->size());
    std::transform(ranges->begin(), ranges->end(), keys.begin(), range_of_sequence);
    band = fit(*ranges, std::move(keys));
  }
  if (band && view.shape[0] != batch) {
    band->keys.resize(static_cast<std::size_t>(batch), band->keys.front());
  }
  return band;
}

BlockMask blocks_of(const Array& mask, std::int64_t batch, std::int64_t heads, const BlockGrid& grid) {
  const BoolView view = bool_view(mask, {batch, heads, grid.queries, grid.keys});
  std::vector<std::uint8_t> dense(static_cast<std::size_t>(grid.queries * grid.keys));
  std::vector<BlockMask> sequences;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    std::vector<BlockMask> patterns;
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      auto next = dense.begin();
      for (std::int64_t i = 0; i < grid.queries; ++i) {
        const std::uint8_t* row = view.row(b, h, i);
        for (std::int64_t j = 0; j < grid.keys; ++j) {
          *next++ = row[j * view.strides[3]];
        }
      }
      patterns.push_back(BlockMask::from_dense(grid, dense));
    }
    sequences.push_back(BlockMask::over_heads(patterns));
  }
  return BlockMask::over_batch(sequences);
}

BlockMask blocks_of(const Array& mask, std::int64_t block_q, std::int64_t block_k) {
  if (mask.ndim() != 4) {
    refuse(shape_text(mask), "bool[batch or 1, heads or 1, seq_q, seq_k]");
  }
  const auto extent = [&mask](std::size_t axis) { return static_cast<std::int64_t>(mask.shape(axis)); };
  return blocks_of(mask, extent(0), extent(1), {extent(2), extent(3), block_q, block_k});
}

BlockMask blocks_of_grid(const Array& kept, const BlockGrid& grid) {
  if (kept.ndim() != 4) {
    refuse(shape_text(kept), "bool[batch or 1, heads or 1, block rows, block columns]");
  }
  if (grid.block_q < 1 || grid.block_k < 1) {
    return BlockMask::from_function(grid, {});  // which names what is wrong
  }
  const auto extent = [&kept](std::size_t axis) { return static_cast<std::int64_t>(kept.shape(axis)); };
  const BoolView view = bool_view(kept, {extent(0), extent(1), grid.rows(), grid.columns()});
  std::vector<BlockMask> sequences;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    std::vector<BlockMask> patterns;
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      patterns.push_back(BlockMask::from_function(grid, [&](std::int64_t row, std::int64_t column) {
        return view.row(b, h, row)[column * view.strides[3]] != 0;
      }));
    }
    sequences.push_back(BlockMask::over_heads(patterns));
  }
  return BlockMask::over_batch(sequences);
}

}  // namespace tessera::python
